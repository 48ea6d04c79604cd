#pragma once
// The nouns that every op shares: views on 8-bit images, and a box inside one.

#include <cstddef>
#include <cstdint>

namespace gliofed {

// Limits of OpenCV's own decoder; with them every sum below fits its integer type.
inline constexpr std::ptrdiff_t kMaxSide = std::ptrdiff_t{1} << 20;
inline constexpr std::ptrdiff_t kMaxPixels = std::ptrdiff_t{1} << 30;

constexpr bool is_allowed_size(std::ptrdiff_t height, std::ptrdiff_t width) {
    return height >= 1 && width >= 1 && height <= kMaxSide && width <= kMaxSide && height * width <= kMaxPixels;
}

// Rows may lie any distance apart, also backwards; the pixels of one row are adjacent.
struct GrayView {
    const std::uint8_t* pixels;
    std::ptrdiff_t height;
    std::ptrdiff_t width;
    std::ptrdiff_t row_stride;

    const std::uint8_t* row(std::ptrdiff_t y) const { return pixels + y * row_stride; }
};

enum class ChannelOrder { kBgr, kRgb };

// Grey (one byte a pixel) or colour (three, interleaved), rows as in GrayView.
struct ImageView {
    const std::uint8_t* pixels;
    std::ptrdiff_t height;
    std::ptrdiff_t width;
    std::ptrdiff_t row_stride;
    int channels;
    ChannelOrder order;

    const std::uint8_t* row(std::ptrdiff_t y) const { return pixels + y * row_stride; }
};

// Columns [left, right) and rows [top, bottom).
struct Box {
    std::ptrdiff_t left;
    std::ptrdiff_t top;
    std::ptrdiff_t right;
    std::ptrdiff_t bottom;

    bool empty() const { return left >= right || top >= bottom; }
};

inline GrayView view_of(const GrayView& image, const Box& box) {
    return {image.row(box.top) + box.left, box.bottom - box.top, box.right - box.left, image.row_stride};
}

}  // namespace gliofed
