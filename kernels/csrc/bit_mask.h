#pragma once
// A binary image, 64 pixels to a word: morphology then costs a few word operations a row.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gliofed {

// Bit x % 64 of word x / 64 is pixel x. Bits at and beyond `width` are zero.
struct BitMask {
    std::ptrdiff_t height = 0;
    std::ptrdiff_t width = 0;
    std::ptrdiff_t words_per_row = 0;
    std::vector<std::uint64_t> words;

    void reshape(std::ptrdiff_t new_height, std::ptrdiff_t new_width) {
        height = new_height;
        width = new_width;
        words_per_row = (new_width + 63) / 64;
        words.resize(static_cast<std::size_t>(height * words_per_row));
    }
    std::uint64_t* row(std::ptrdiff_t y) { return words.data() + y * words_per_row; }
    const std::uint64_t* row(std::ptrdiff_t y) const { return words.data() + y * words_per_row; }

    // False outside the image.
    bool at(std::ptrdiff_t x, std::ptrdiff_t y) const {
        if (x < 0 || y < 0 || x >= width || y >= height) return false;
        return (row(y)[x >> 6] >> (x & 63)) & 1;
    }
    // Bits of the last word of a row that lie beyond the image.
    std::uint64_t padding_bits() const { return width % 64 ? ~std::uint64_t{0} << (width % 64) : 0; }
};

}  // namespace gliofed
