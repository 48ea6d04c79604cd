#include "foreground.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "avx2.h"

namespace gliofed {
namespace avx2 {
namespace {

constexpr std::ptrdiff_t kWordPixels = 64;
constexpr std::ptrdiff_t kRowsAhead = 4;  // between asking the outer caches for pixels and their use
constexpr std::ptrdiff_t kReach = 2;  // of the 5x5 opening
constexpr std::uint64_t kOnes = ~std::uint64_t{0};

// Sums of 32 neighbouring pixels of a row, those at even and at odd columns apart: multiply-add sums neighbours in
// pairs, and sorting them back would cost more than all the rest.
struct Sums {
    __m256i even;
    __m256i odd;
};

GLIOFED_AVX2_INLINE Sums add(const Sums& a, const Sums& b) {
    return {_mm256_add_epi16(a.even, b.even), _mm256_add_epi16(a.odd, b.odd)};
}
GLIOFED_AVX2_INLINE Sums load_sums(const std::uint16_t* sums) { return {load256(sums), load256(sums + 16)}; }
GLIOFED_AVX2_INLINE void store_sums(std::uint16_t* to, const Sums& sums) {
    store256(to, sums.even);
    store256(to + 16, sums.odd);
}

GLIOFED_AVX2_INLINE __m256i sum_pairs(__m256i pixels) { return _mm256_maddubs_epi16(pixels, _mm256_set1_epi8(1)); }

// `pixels` moved on by one place, with `first` in front.
GLIOFED_AVX2_INLINE __m256i push_front(__m256i pixels, std::uint8_t first) {
    const __m256i zero_low = _mm256_permute2x128_si256(pixels, pixels, 0x08);
    return _mm256_or_si256(_mm256_alignr_epi8(pixels, zero_low, 15), _mm256_zextsi128_si256(_mm_cvtsi32_si128(first)));
}

// `pixels` moved back by one place, with `last` at the end.
GLIOFED_AVX2_INLINE __m256i push_back(__m256i pixels, std::uint8_t last) {
    const __m256i high_last = _mm256_permute2x128_si256(pixels, _mm256_set1_epi8(static_cast<char>(last)), 0x21);
    return _mm256_alignr_epi8(high_last, pixels, 1);
}

// Where a word of pixels lies in its row, and hence which neighbours must be reflected instead of read.
enum class Place { kFirst, kMiddle, kLast };

// 1 2 1 along the row.
GLIOFED_AVX2_INLINE Sums blur_across(__m256i left, __m256i here, __m256i right) {
    const __m256i pairs = sum_pairs(here);
    return {_mm256_add_epi16(sum_pairs(left), pairs), _mm256_add_epi16(pairs, sum_pairs(right))};
}

template <Place kPlace>
GLIOFED_AVX2_INLINE Sums blur_low(const std::uint8_t* pixels) {
    const __m256i here = load256(pixels);
    const __m256i left = kPlace == Place::kFirst ? push_front(here, pixels[1]) : load256(pixels - 1);
    return blur_across(left, here, load256(pixels + 1));
}

template <Place kPlace>
GLIOFED_AVX2_INLINE Sums blur_high(const std::uint8_t* pixels) {
    const __m256i here = load256(pixels + 32);
    const __m256i right = kPlace == Place::kLast ? push_back(here, pixels[62]) : load256(pixels + 33);
    return blur_across(load256(pixels + 31), here, right);
}

GLIOFED_AVX2_INLINE std::uint64_t threshold(const Sums& sums) {
    const __m256i too_small = _mm256_set1_epi16(kSmallestForegroundSum - 1);
    const __m256i odd_columns = _mm256_set1_epi16(static_cast<std::int16_t>(0xFF00));
    const __m256i above = _mm256_blendv_epi8(_mm256_cmpgt_epi16(sums.even, too_small),
                                             _mm256_cmpgt_epi16(sums.odd, too_small), odd_columns);
    return static_cast<std::uint32_t>(_mm256_movemask_epi8(above));
}

// Two rows of the mask are made at once. Their bits of one word:
struct Bits {
    std::uint64_t upper;
    std::uint64_t lower;
};

// The sums along the row above both and along the upper one of them, 64 for each word of pixels.
struct SumRows {
    std::uint16_t* above;
    std::uint16_t* upper;
};

// 1 2 1 down the columns. The sums of the lower row and of the one below, just made, take the place of the two above.
GLIOFED_AVX2_INLINE Bits threshold_half(const Sums& lower, const Sums& below, SumRows rows, std::ptrdiff_t x) {
    const Sums upper = load_sums(rows.upper + x);
    const Sums between = add(upper, lower);
    const Sums upper_sum = add(add(load_sums(rows.above + x), upper), between);
    const Sums lower_sum = add(between, add(lower, below));
    store_sums(rows.above + x, lower);
    store_sums(rows.upper + x, below);
    return {threshold(upper_sum), threshold(lower_sum)};
}

// The lower of the two rows and the one below, from some column on.
struct PixelRows {
    const std::uint8_t* lower;
    const std::uint8_t* below;
};

template <Place kPlace>
GLIOFED_AVX2_INLINE Bits threshold_word(PixelRows pixels, SumRows rows, std::ptrdiff_t x) {
    const Bits low = threshold_half(blur_low<kPlace>(pixels.lower), blur_low<kPlace>(pixels.below), rows, x);
    const Bits high = threshold_half(blur_high<kPlace>(pixels.lower), blur_high<kPlace>(pixels.below), rows, x + 32);
    return {low.upper | (high.upper << 32), low.lower | (high.lower << 32)};
}

// A word of pixels next to its reflected neighbours.
struct PaddedWord {
    std::array<std::uint8_t, kWordPixels + 2> pixels{};

    // Those from x to the end of the row, at most a word of them.
    PaddedWord(const std::uint8_t* row, std::ptrdiff_t width, std::ptrdiff_t x) {
        // Clamped only to show the compiler what copies it may have to reckon with.
        const std::ptrdiff_t count = std::clamp(width - x, std::ptrdiff_t{1}, kWordPixels);
        pixels[0] = row[reflect(x - 1, width)];
        std::memcpy(&pixels[1], row + x, static_cast<std::size_t>(count));
        pixels[static_cast<std::size_t>(count + 1)] = row[reflect(width, width)];
    }
};

// Where the bits of two rows go.
struct BitRows {
    std::uint64_t* upper;
    std::uint64_t* lower;

    void put(const Bits& bits) {
        *upper++ = bits.upper;
        *lower++ = bits.lower;
    }
};

// The pixels from x to the end of the rows, at most a word of them.
GLIOFED_AVX2 Bits threshold_rest(PixelRows pixels, std::ptrdiff_t width, SumRows rows, std::ptrdiff_t x) {
    const PaddedWord lower(pixels.lower, width, x);
    const PaddedWord below(pixels.below, width, x);
    return threshold_word<Place::kMiddle>({&lower.pixels[1], &below.pixels[1]}, rows, x);
}

// `ahead`: two rows that are to be fetched meanwhile.
GLIOFED_AVX2_INLINE void threshold_rows(PixelRows pixels, PixelRows ahead, std::ptrdiff_t width, SumRows rows,
                                        BitRows out) {
    std::ptrdiff_t x = 0;
    if (width > kWordPixels) {
        out.put(threshold_word<Place::kFirst>(pixels, rows, x));
        for (x += kWordPixels; x + kWordPixels < width; x += kWordPixels) {
            _mm_prefetch(ahead.lower + x, _MM_HINT_T0);
            _mm_prefetch(ahead.below + x, _MM_HINT_T0);
            out.put(threshold_word<Place::kMiddle>({pixels.lower + x, pixels.below + x}, rows, x));
        }
        if (x + kWordPixels == width) {
            out.put(threshold_word<Place::kLast>({pixels.lower + x, pixels.below + x}, rows, x));
            return;
        }
    }
    out.put(threshold_rest(pixels, width, rows, x));
}

// Rows of bits with a spare word between each two, which makes a neighbour on either side, and with kReach spare rows
// above and below. Walked from the first row to the last as one array, in vectors of four words: what comes out for the
// spare words, and the few words written beyond the last row, mean nothing.
struct BitPlane {
    std::uint64_t* words;
    std::ptrdiff_t height;
    std::ptrdiff_t words_per_row;
    std::ptrdiff_t stride;

    BitPlane(std::uint64_t* memory, const BitMask& shape)
        : words(memory), height(shape.height), words_per_row(shape.words_per_row), stride(stride_of(shape)) {}

    static std::ptrdiff_t stride_of(const BitMask& shape) { return shape.words_per_row + 1; }
    static std::ptrdiff_t size_of(const BitMask& shape) { return (shape.height + 2 * kReach) * stride_of(shape); }

    std::uint64_t* row(std::ptrdiff_t y) const { return words + (y + kReach) * stride; }

    // Sets what lies beside the rows. All rows at once, well before they are read: a vector that is loaded just after
    // one of its words was stored has to wait for the store.
    void surround_rows(std::uint64_t outside, std::uint64_t padding) const {
        row(0)[-1] = outside;
        for (std::ptrdiff_t y = 0; y < height; ++y) row(y)[words_per_row] = outside;
        if (padding == 0) return;
        for (std::ptrdiff_t y = 0; y < height; ++y) {
            std::uint64_t& last = row(y)[words_per_row - 1];
            last = (last & ~padding) | (outside & padding);
        }
    }
    void surround_columns(std::uint64_t outside) const {
        std::fill(words, row(0), outside);
        std::fill(row(height), row(height + kReach), outside);
    }
};

GLIOFED_AVX2 void blur_and_threshold(const GrayView& image, const BitPlane& plane,
                                     AlignedBuffer<std::uint16_t>& buffer) {
    const std::ptrdiff_t padded_width = plane.words_per_row * kWordPixels;
    std::uint16_t* sums = buffer.at_least(static_cast<std::size_t>(2 * padded_width));
    std::fill(sums, sums + 2 * padded_width, std::uint16_t{0});
    // Rows -2 and -1 come first only to leave the sums of rows 1 (reflected) and 0 behind; their bits are overwritten.
    // Where the height is odd, the last row of bits is a spare one.
    for (std::ptrdiff_t y = -2; y < image.height; y += 2) {
        const PixelRows pixels{image.row(reflect(y + 1, image.height)), image.row(reflect(y + 2, image.height))};
        const PixelRows ahead{image.row(std::min(y + 1 + kRowsAhead, image.height - 1)),
                              image.row(std::min(y + 2 + kRowsAhead, image.height - 1))};
        const std::ptrdiff_t to = std::max<std::ptrdiff_t>(y, 0);
        threshold_rows(pixels, ahead, image.width, {sums, sums + padded_width}, {plane.row(to), plane.row(to + 1)});
    }
}

struct Erode {
    static constexpr std::uint64_t kOutside = kOnes;
    GLIOFED_AVX2_INLINE __m256i join(__m256i a, __m256i b) { return _mm256_and_si256(a, b); }
};

struct Dilate {
    static constexpr std::uint64_t kOutside = 0;
    GLIOFED_AVX2_INLINE __m256i join(__m256i a, __m256i b) { return _mm256_or_si256(a, b); }
};

// Each pixel joined with the two on either side, 256 pixels at a time.
template <class Rule>
GLIOFED_AVX2_INLINE __m256i join_along_row(const std::uint64_t* words) {
    const __m256i here = load256(words);
    const __m256i before = load256(words - 1);
    const __m256i after = load256(words + 1);
    const __m256i left1 = _mm256_or_si256(_mm256_slli_epi64(here, 1), _mm256_srli_epi64(before, 63));
    const __m256i left2 = _mm256_or_si256(_mm256_slli_epi64(here, 2), _mm256_srli_epi64(before, 62));
    const __m256i right1 = _mm256_or_si256(_mm256_srli_epi64(here, 1), _mm256_slli_epi64(after, 63));
    const __m256i right2 = _mm256_or_si256(_mm256_srli_epi64(here, 2), _mm256_slli_epi64(after, 62));
    return Rule::join(here, Rule::join(Rule::join(left1, left2), Rule::join(right1, right2)));
}

// Each pixel joined with the two above and the two below.
template <class Rule>
GLIOFED_AVX2_INLINE __m256i join_down_column(const std::uint64_t* words, std::ptrdiff_t stride) {
    const __m256i outer = Rule::join(load256(words - 2 * stride), load256(words + 2 * stride));
    const __m256i inner = Rule::join(load256(words - stride), load256(words + stride));
    return Rule::join(load256(words), Rule::join(outer, inner));
}

template <class Rule>
GLIOFED_AVX2 void morph_rows(const BitPlane& in, const BitPlane& out, std::uint64_t padding) {
    in.surround_rows(Rule::kOutside, padding);
    const std::uint64_t* from = in.row(0);
    std::uint64_t* to = out.row(0);
    const std::ptrdiff_t count = in.height * in.stride;
    for (std::ptrdiff_t j = 0; j < count; j += 4) store256(to + j, join_along_row<Rule>(from + j));
}

template <class Rule>
GLIOFED_AVX2 void morph_columns(const BitPlane& in, const BitPlane& out) {
    in.surround_columns(Rule::kOutside);
    const std::uint64_t* from = in.row(0);
    std::uint64_t* to = out.row(0);
    const std::ptrdiff_t count = in.height * in.stride;
    for (std::ptrdiff_t j = 0; j < count; j += 4) store256(to + j, join_down_column<Rule>(from + j, in.stride));
}

void copy_to_mask(const BitPlane& plane, BitMask& mask) {
    const std::uint64_t padding = mask.padding_bits();
    for (std::ptrdiff_t y = 0; y < plane.height; ++y) {
        const std::uint64_t* from = plane.row(y);
        std::uint64_t* to = mask.row(y);
        for (std::ptrdiff_t j = 0; j < plane.words_per_row; ++j) to[j] = from[j];
        to[plane.words_per_row - 1] &= ~padding;
    }
}

}  // namespace
}  // namespace avx2

void foreground_avx2(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers) {
    mask.reshape(image.height, image.width);
    const std::ptrdiff_t size = avx2::BitPlane::size_of(mask);
    std::uint64_t* memory = buffers.planes.at_least(static_cast<std::size_t>(2 * size));
    const avx2::BitPlane plane(memory, mask);
    const avx2::BitPlane between(memory + size, mask);
    avx2::blur_and_threshold(image, plane, buffers.column_sums);
    avx2::morph_rows<avx2::Erode>(plane, between, mask.padding_bits());
    avx2::morph_columns<avx2::Erode>(between, plane);
    avx2::morph_rows<avx2::Dilate>(plane, between, mask.padding_bits());
    avx2::morph_columns<avx2::Dilate>(between, plane);
    avx2::copy_to_mask(plane, mask);
}

}  // namespace gliofed
