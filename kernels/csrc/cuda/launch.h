#pragma once
// The CUDA twin of pipeline.h: the same journey for a batch that already lies on the device, for any host.
//
// Nothing here waits for the device: every call puts its kernels on `stream` and returns. What a call needs of the
// host travels in its kernels' arguments, so the spans may die as soon as it returns, no pinned memory has to
// outlive the copy, and calls can be captured into a CUDA graph. Memory on the device is the caller's: it must stay
// until the stream has passed, and two calls that may run at once must not share a workspace.

#include <cstddef>
#include <cstdint>
#include <span>

#include "colour.h"
#include "image.h"

struct CUstream_st;

namespace gliofed::cuda {

using Stream = CUstream_st*;  // cudaStream_t, without asking callers for CUDA's headers

inline constexpr std::size_t kMaxImages = 65536;
inline constexpr std::size_t kWorkspaceAlignment = 256;

// As gliofed::Box. All four are zero where no contour was found and the whole image was used.
struct DeviceBox {
    std::int32_t left;
    std::int32_t top;
    std::int32_t right;
    std::int32_t bottom;
};

// Working memory on the device for crop_batch and preprocess_batch: near 1.4 bytes a pixel and 65 KiB an image.
// Throws std::invalid_argument, which names the image, for images outside the limits of image.h.
std::size_t workspace_bytes(std::span<const ImageView> images);

// All calls throw std::invalid_argument for arguments out of range and std::runtime_error with CUDA's own words
// where a kernel cannot be started. Views hold device pointers; the current device must be theirs.
// `crops` is [N, kCropSide, kCropSide], 4-byte aligned; `workspace` has workspace_bytes(images), 256-byte aligned.
void crop_batch(std::span<const ImageView> images, std::uint8_t* crops, DeviceBox* boxes, void* workspace,
                Stream stream);

// Step 3 alone; `smooth` is as `crops` and does not overlap it.
void denoise_batch(const std::uint8_t* crops, std::size_t num_images, std::uint8_t* smooth, Stream stream);

// Smooth crops to output. `out` is [N, 3, side, side]. T is float or Bfloat16, here and below.
template <class T>
void colour_batch(const std::uint8_t* smooth, std::size_t num_images, const Normalisation& normalisation, T* out,
                  std::ptrdiff_t side, Stream stream);

// Crops to output in one pass.
template <class T>
void finish_batch(const std::uint8_t* crops, std::size_t num_images, const Normalisation& normalisation, T* out,
                  std::ptrdiff_t side, Stream stream);

template <class T>
void preprocess_batch(std::span<const ImageView> images, const Normalisation& normalisation, T* out,
                      DeviceBox* boxes, std::ptrdiff_t side, void* workspace, Stream stream);

}  // namespace gliofed::cuda
