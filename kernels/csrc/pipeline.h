#pragma once
// The journey of one image through the ops, and of a batch through threads.

#include <cstdint>
#include <optional>
#include <span>

#include "bit_mask.h"
#include "buffer.h"
#include "colour.h"
#include "contour.h"
#include "denoise.h"
#include "dispatch.h"
#include "foreground.h"
#include "image.h"
#include "resize.h"

namespace gliofed {

inline constexpr std::ptrdiff_t kCropSide = 256;
inline constexpr std::ptrdiff_t kCropPixels = kCropSide * kCropSide;

// What one worker keeps from image to image, so that a batch allocates only once. Serves the twins of one ISA.
struct Workspace {
    AlignedBuffer<std::uint8_t> gray;
    BitMask mask;
    ForegroundBuffers foreground;
    ContourBuffers contour;
    ResizeBuffers resize;
    AlignedBuffer<std::uint8_t> crop;
    AlignedBuffer<std::uint8_t> smooth;
    DenoiseBuffers denoise;
    ColourBuffers colour;
};

// Steps 1 and 2. Without a contour, or with one that leaves no pixel, the whole image is used and no box returned.
// `crop` is kCropSide x kCropSide, contiguous.
std::optional<Box> crop_image(const ImageView& image, std::uint8_t* crop, const Ops& ops, Workspace& workspace);

// Steps 3 to 5 and the normalisation, for one crop. `out` is 3 x side x side. T is float or Bfloat16, here and below.
template <class T>
void finish_crop(const std::uint8_t* crop, const LevelTables<T>& tables, T* out, std::ptrdiff_t side, const Ops& ops,
                 Workspace& workspace);

// An output larger than this does not stay in the caches until someone reads it.
inline constexpr std::size_t kStreamedBytes = std::size_t{4} << 20;

// Batches lie one image after the other in `crops` and `out`. All of them throw std::bad_alloc or, for want of
// threads, std::system_error.
void crop_batch(std::span<const ImageView> images, std::uint8_t* crops, std::span<std::optional<Box>> boxes,
                int num_threads);

// Step 3 alone, from crops to smooth crops of the same size, and the rest alone: what is kept between them is the
// last that does not depend on the output's size.
void denoise_batch(const std::uint8_t* crops, std::size_t num_crops, std::uint8_t* smooth, int num_threads);

template <class T>
void colour_batch(const std::uint8_t* smooth, std::size_t num_crops, const Normalisation& normalisation, T* out,
                  std::ptrdiff_t side, int num_threads);

template <class T>
void finish_batch(const std::uint8_t* crops, std::size_t num_crops, const Normalisation& normalisation, T* out,
                  std::ptrdiff_t side, int num_threads);

// `found[i]` is set when image i had a contour.
template <class T>
void preprocess_batch(std::span<const ImageView> images, const Normalisation& normalisation, T* out, bool* found,
                      std::ptrdiff_t side, int num_threads);

}  // namespace gliofed
