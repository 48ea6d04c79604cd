#include "foreground.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace gliofed {
namespace {

static_assert(std::endian::native == std::endian::little, "pack_row reads eight pixels as one integer");

// Eight bytes of 0 or 1 become eight bits: the product gathers byte i at bit 56 + i, free of carries.
void pack_row(const std::uint8_t* above, std::uint64_t* words, std::ptrdiff_t words_per_row) {
    for (std::ptrdiff_t j = 0; j < words_per_row; ++j) {
        std::uint64_t word = 0;
        for (int k = 0; k < 8; ++k) {
            std::uint64_t eight;
            std::memcpy(&eight, above + 64 * j + 8 * k, sizeof eight);
            word |= ((eight * 0x0102040810204080u) >> 56) << (8 * k);
        }
        words[j] = word;
    }
}

void blur_and_threshold(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers) {
    const std::ptrdiff_t width = image.width;
    const std::ptrdiff_t padded_width = 64 * mask.words_per_row;
    std::uint16_t* sums = buffers.column_sums.at_least(static_cast<std::size_t>(width + 2)) + 1;
    std::uint8_t* above = buffers.scratch.at_least(static_cast<std::size_t>(padded_width));
    std::fill(above + width, above + padded_width, std::uint8_t{0});
    for (std::ptrdiff_t y = 0; y < image.height; ++y) {
        const std::uint8_t* up = image.row(reflect(y - 1, image.height));
        const std::uint8_t* here = image.row(y);
        const std::uint8_t* down = image.row(reflect(y + 1, image.height));
        for (std::ptrdiff_t x = 0; x < width; ++x) {
            sums[x] = static_cast<std::uint16_t>(up[x] + 2 * here[x] + down[x]);
        }
        sums[-1] = sums[reflect(-1, width)];
        sums[width] = sums[reflect(width, width)];
        for (std::ptrdiff_t x = 0; x < width; ++x) {
            const auto sum = static_cast<std::uint16_t>(sums[x - 1] + 2 * sums[x] + sums[x + 1]);
            above[x] = sum >= kSmallestForegroundSum;
        }
        pack_row(above, mask.row(y), mask.words_per_row);
    }
}

struct Erode {
    static constexpr std::uint64_t kOutside = ~std::uint64_t{0};
    static std::uint64_t join(std::uint64_t a, std::uint64_t b) { return a & b; }
};

struct Dilate {
    static constexpr std::uint64_t kOutside = 0;
    static std::uint64_t join(std::uint64_t a, std::uint64_t b) { return a | b; }
};

template <class Rule>
void morph_row(const std::uint64_t* in, std::uint64_t* out, std::ptrdiff_t words_per_row, std::uint64_t padding) {
    const auto word = [&](std::ptrdiff_t j) {
        if (j < 0 || j >= words_per_row) return Rule::kOutside;
        if (j + 1 < words_per_row) return in[j];
        return (in[j] & ~padding) | (Rule::kOutside & padding);
    };
    std::uint64_t before = Rule::kOutside;
    std::uint64_t here = word(0);
    for (std::ptrdiff_t j = 0; j < words_per_row; ++j) {
        const std::uint64_t after = word(j + 1);
        const std::uint64_t left = Rule::join((here << 1) | (before >> 63), (here << 2) | (before >> 62));
        const std::uint64_t right = Rule::join((here >> 1) | (after << 63), (here >> 2) | (after << 62));
        out[j] = Rule::join(here, Rule::join(left, right));
        before = here;
        here = after;
    }
}

// 5x5 erosion or dilation in place: along rows into `spare`, then down columns back into `mask`.
template <class Rule>
void morph(BitMask& mask, BitMask& spare) {
    const std::ptrdiff_t num_words = mask.words_per_row;
    const std::uint64_t padding = mask.padding_bits();
    for (std::ptrdiff_t y = 0; y < mask.height; ++y) {
        morph_row<Rule>(mask.row(y), spare.row(y), num_words, padding);
    }
    for (std::ptrdiff_t y = 0; y < mask.height; ++y) {
        std::uint64_t* out = mask.row(y);
        const std::ptrdiff_t first = std::max<std::ptrdiff_t>(0, y - 2);
        const std::ptrdiff_t last = std::min(mask.height - 1, y + 2);
        std::copy_n(spare.row(first), num_words, out);
        for (std::ptrdiff_t k = first + 1; k <= last; ++k) {
            const std::uint64_t* in = spare.row(k);
            for (std::ptrdiff_t j = 0; j < num_words; ++j) out[j] = Rule::join(out[j], in[j]);
        }
        out[num_words - 1] &= ~padding;
    }
}

}  // namespace

void foreground_scalar(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers) {
    mask.reshape(image.height, image.width);
    buffers.spare.reshape(image.height, image.width);
    blur_and_threshold(image, mask, buffers);
    morph<Erode>(mask, buffers.spare);
    morph<Dilate>(mask, buffers.spare);
}

}  // namespace gliofed
