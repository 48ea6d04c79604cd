#include "gray.h"

namespace gliofed {

void gray_scalar(const ImageView& image, std::uint8_t* out) {
    const bool bgr = image.order == ChannelOrder::kBgr;
    const int first = bgr ? kGrayWeightBlue : kGrayWeightRed;
    const int third = bgr ? kGrayWeightRed : kGrayWeightBlue;
    constexpr int kHalf = 1 << (kGrayShift - 1);
    for (std::ptrdiff_t y = 0; y < image.height; ++y) {
        const std::uint8_t* row = image.row(y);
        for (std::ptrdiff_t x = 0; x < image.width; ++x) {
            const int sum = row[3 * x] * first + row[3 * x + 1] * kGrayWeightGreen + row[3 * x + 2] * third;
            *out++ = static_cast<std::uint8_t>((sum + kHalf) >> kGrayShift);
        }
    }
}

}  // namespace gliofed
