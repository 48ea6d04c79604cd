#include "picture.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

namespace gliofed::fuzz {
namespace {

constexpr std::ptrdiff_t kLargestSide = 700;
constexpr std::ptrdiff_t kLongestLine = 6000;
constexpr std::ptrdiff_t kMostPixels = 200'000;
// Around the threshold, and the ends of the range.
constexpr std::array<std::uint8_t, 9> kLevels{0, 44, 45, 46, 47, 90, 200, 254, 255};

struct Plane {
    std::ptrdiff_t height;
    std::ptrdiff_t width;
    std::vector<std::uint8_t> pixels;

    void set(std::ptrdiff_t y, std::ptrdiff_t x, std::uint8_t level) {
        if (y >= 0 && x >= 0 && y < height && x < width) pixels[static_cast<std::size_t>(y * width + x)] = level;
    }
};

void lay_ground(Plane& plane, Choices& choices) {
    const std::ptrdiff_t kind = choices.below(6);
    const std::uint8_t a = choices.one_of(kLevels);
    const std::uint8_t b = choices.one_of(kLevels);
    const std::ptrdiff_t cell = choices.between(1, 12);
    Noise noise(static_cast<std::uint64_t>(choices.below(65536)));
    for (std::ptrdiff_t y = 0; y < plane.height; ++y) {
        for (std::ptrdiff_t x = 0; x < plane.width; ++x) {
            const std::uint8_t level = kind == 0   ? std::uint8_t{0}
                                       : kind == 1 ? a
                                       : kind == 2 ? noise.level(40, 51)
                                       : kind == 3 ? noise.level(0, 255)
                                       : kind == 4 ? ((y / cell + x / cell) % 2 == 0 ? a : b)
                                                   : (noise.below(64) == 0 ? a : std::uint8_t{0});
            plane.set(y, x, level);
        }
    }
}

// What one stroke leaves at (y, x) of its own rows x columns: the shapes that test contours and openings.
bool covers(std::ptrdiff_t shape, std::ptrdiff_t y, std::ptrdiff_t x, std::ptrdiff_t rows, std::ptrdiff_t columns,
            std::ptrdiff_t rim) {
    const std::ptrdiff_t depth = std::min(std::min(y, rows - 1 - y), std::min(x, columns - 1 - x));
    const std::ptrdiff_t dy = 2 * y - rows + 1;
    const std::ptrdiff_t dx = 2 * x - columns + 1;
    const std::ptrdiff_t distance = dy * dy + dx * dx;
    const std::ptrdiff_t radius = std::min(rows, columns);
    switch (shape) {
        case 0:  // rectangle
            return true;
        case 1:  // frame
            return depth < rim;
        case 2:  // frames within frames
            return depth / rim % 2 == 0;
        case 3:  // disc
            return distance < radius * radius;
        case 4:  // ring
            return distance < radius * radius && distance >= (radius - 2 * rim) * (radius - 2 * rim);
        case 5:  // comb
            return y < rim || x / rim % 2 == 0;
        case 6:  // squares that touch at corners only
            return (y / rim + x / rim) % 2 == 0;
        case 7:  // diagonal
            return std::abs(y - x) < rim;
        case 8:  // spiral: frames within frames, each opened and led on to the next
            return (depth / rim % 2 == 0) != (x - y >= 0 && x - y < rim && y < rows / 2);
        default:  // two legs of one rectangle's bounds
            return y < rim || x < rim;
    }
}

void paint_stroke(Plane& plane, Choices& choices) {
    const std::ptrdiff_t shape = choices.below(10);
    const std::ptrdiff_t rows = choices.between(1, choices.yes() ? 12 : 90);
    const std::ptrdiff_t columns = choices.yes() ? rows : choices.between(1, 90);
    const std::ptrdiff_t rim = choices.between(1, 7);
    const std::uint8_t level = choices.one_of(kLevels);
    const bool transposed = choices.yes();  // the same area, other bounds
    const std::ptrdiff_t copies = choices.between(1, 4);
    for (std::ptrdiff_t k = 0; k < copies; ++k) {
        const std::ptrdiff_t top = choices.between(-4, plane.height);
        const std::ptrdiff_t left = choices.between(-4, plane.width);
        for (std::ptrdiff_t y = 0; y < rows; ++y) {
            for (std::ptrdiff_t x = 0; x < columns; ++x) {
                if (!covers(shape, y, x, rows, columns, rim)) continue;
                const bool turned = transposed && k % 2 == 1;
                plane.set(top + (turned ? x : y), left + (turned ? y : x), level);
            }
        }
    }
}

void colour(Picture& picture, const Plane& plane, Choices& choices) {
    const std::ptrdiff_t tint = choices.below(3);
    Noise noise(static_cast<std::uint64_t>(choices.below(65536)));
    for (std::size_t i = 0; i < picture.pixels.size(); ++i) {
        const int gray = plane.pixels[i / 3];
        const int level = tint == 0   ? gray
                          : tint == 1 ? gray + static_cast<int>(noise.below(7)) - 3
                                      : static_cast<int>(noise.below(256));
        picture.pixels[i] = static_cast<std::uint8_t>(std::clamp(level, 0, 255));
    }
}

std::ptrdiff_t row_bytes(const Picture& picture) { return picture.width * picture.channels; }

std::size_t span_of(const Picture& picture, const Layout& layout) {
    return static_cast<std::size_t>(picture.height * (row_bytes(picture) + layout.gap) - layout.gap);
}

struct Sides {
    std::ptrdiff_t height;
    std::ptrdiff_t width;
};

Sides make_sides(Choices& choices, const std::vector<Picture>& earlier) {
    std::ptrdiff_t height = choices.side(kLargestSide);
    std::ptrdiff_t width = choices.side(kLargestSide);
    const std::ptrdiff_t kind = choices.below(12);
    if (kind == 0) width = choices.between(1, kLongestLine);
    if (kind == 1) height = choices.between(1, kLongestLine);
    if (!earlier.empty() && (kind == 2 || kind == 3)) height = earlier.front().height;
    if (!earlier.empty() && (kind == 3 || kind == 4)) width = earlier.front().width;
    if (height > width) return {std::min(height, std::max<std::ptrdiff_t>(1, kMostPixels / width)), width};
    return {height, std::min(width, std::max<std::ptrdiff_t>(1, kMostPixels / height))};
}

}  // namespace

Picture make_picture(Choices& choices, const std::vector<Picture>& earlier) {
    const auto [height, width] = make_sides(choices, earlier);
    Plane plane{height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(height * width))};
    lay_ground(plane, choices);
    for (std::ptrdiff_t strokes = choices.below(9); strokes > 0; --strokes) paint_stroke(plane, choices);
    const int channels = choices.below(3) == 0 ? 3 : 1;
    const ChannelOrder order = choices.yes() ? ChannelOrder::kBgr : ChannelOrder::kRgb;
    Picture picture{height, width, channels, order, {}};
    if (channels == 1) {
        picture.pixels = std::move(plane.pixels);
    } else {
        picture.pixels.resize(3 * plane.pixels.size());
        colour(picture, plane, choices);
    }
    return picture;
}

Layout make_layout(Choices& choices) {
    const std::ptrdiff_t gap = choices.yes() ? choices.below(70) : 0;
    const bool backwards = choices.yes();
    return {gap, backwards, choices.yes() ? Flush::kLeft : Flush::kRight};
}

Placed::Placed(const Picture& picture, const Layout& layout)
    : memory_(span_of(picture, layout), layout.flush, 0xA5), view_{} {
    const std::ptrdiff_t length = row_bytes(picture);
    const std::ptrdiff_t stride = layout.backwards ? -(length + layout.gap) : length + layout.gap;
    std::uint8_t* first = memory_.bytes() + (layout.backwards ? -stride * (picture.height - 1) : 0);
    for (std::ptrdiff_t y = 0; y < picture.height; ++y) {
        std::memcpy(first + y * stride, picture.pixels.data() + y * length, static_cast<std::size_t>(length));
    }
    view_ = {first, picture.height, picture.width, stride, picture.channels, picture.order};
}

}  // namespace gliofed::fuzz
