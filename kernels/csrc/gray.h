#pragma once
// Op `gray`: colour to grey, the arithmetic of cv::cvtColor BGR2GRAY.

#include <cstdint>

#include "image.h"

namespace gliofed {

// Weights of blue, green and red in 1/32768 (ITU-R BT.601); the sum is rounded to the nearest level.
inline constexpr int kGrayWeightBlue = 3735;
inline constexpr int kGrayWeightGreen = 19235;
inline constexpr int kGrayWeightRed = 9798;
inline constexpr int kGrayShift = 15;

// `image` has three channels; `out` is height x width, contiguous, and does not overlap it.
void gray_scalar(const ImageView& image, std::uint8_t* out);
void gray_avx2(const ImageView& image, std::uint8_t* out);
void gray_avx512(const ImageView& image, std::uint8_t* out);

}  // namespace gliofed
