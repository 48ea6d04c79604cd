#pragma once
// The journey of one image through the ops, and of a batch through threads.

#include <cstdint>
#include <optional>
#include <span>

#include "bit_mask.h"
#include "colour.h"
#include "contour.h"
#include "denoise.h"
#include "foreground.h"
#include "image.h"
#include "resize.h"

namespace gliofed {

inline constexpr std::ptrdiff_t kCropSide = 256;
inline constexpr std::ptrdiff_t kCropPixels = kCropSide * kCropSide;

// What one worker keeps from image to image, so that a batch allocates only once.
struct Workspace {
    BitMask mask;
    ForegroundBuffers foreground;
    ContourBuffers contour;
    ResizeBuffers resize;
    DenoiseBuffers denoise;
    ColourBuffers colour;
    std::vector<std::uint8_t> crop;
    std::vector<std::uint8_t> smooth;
};

// Steps 1 and 2. Without a contour, or with one that leaves no pixel, the whole image is used and no box returned.
std::optional<Box> crop_image(const GrayView& image, std::uint8_t* crop, Workspace& workspace);

// Steps 3 to 5 and the normalisation, for a crop of kCropSide squared.
void finish_crop(const std::uint8_t* crop, const Normalisation& normalisation, float* out, std::ptrdiff_t side,
                 Workspace& workspace);

void finish_batch(std::span<const std::uint8_t* const> crops, const Normalisation& normalisation, float* out,
                  std::ptrdiff_t side, int num_threads);

// `found[i]` is set when image i had a contour. Throws std::bad_alloc or, for want of threads, std::system_error.
void preprocess_batch(std::span<const GrayView> images, const Normalisation& normalisation, float* out, bool* found,
                      std::ptrdiff_t side, int num_threads);

}  // namespace gliofed
