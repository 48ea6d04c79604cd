#include "foreground.h"

#include "cpu/avx512.h"

namespace gliofed {
namespace {

using avx512::first_lanes;

// The 64 pixels from x on. `left` and `right` say which of the bytes from x - 1 and from x + 1 on lie in the row, and
// the other two which lane of theirs stands for the pixel before the row or behind it.
struct Block {
    std::ptrdiff_t x;
    std::uint64_t here, left, right;
    std::uint64_t before_row, behind_row;

    bool inside_row() const { return before_row == 0 && right == ~std::uint64_t{0}; }
};

Block block_at(std::ptrdiff_t x, std::ptrdiff_t width) {
    const std::uint64_t before_row = x == 0;
    const std::ptrdiff_t end = width - 1 - x;
    const std::uint64_t behind_row = end < 64 ? std::uint64_t{1} << end : 0;
    const std::uint64_t left = first_lanes(width - x + 1) & ~before_row;
    return {x, first_lanes(width - x), left, first_lanes(end), before_row, behind_row};
}

// 1 2 1 along a row, for the 32 even and the 32 odd pixels of a block.
struct RowSums {
    __m512i even;
    __m512i odd;
};

GLIOFED_AVX512_INLINE RowSums operator+(RowSums a, RowSums b) {
    return {_mm512_add_epi16(a.even, b.even), _mm512_add_epi16(a.odd, b.odd)};
}

template <bool kInsideRow>
GLIOFED_AVX512_INLINE RowSums sum_row(const std::uint8_t* row, std::ptrdiff_t width, const Block& block) {
    __m512i left;
    __m512i right;
    if constexpr (kInsideRow) {
        left = _mm512_loadu_si512(row + block.x - 1);
        right = _mm512_loadu_si512(row + block.x + 1);
    } else {
        left = _mm512_maskz_loadu_epi8(block.left, row + block.x - 1);
        right = _mm512_maskz_loadu_epi8(block.right, row + block.x + 1);
        left = _mm512_mask_set1_epi8(left, block.before_row, static_cast<char>(row[reflect(-1, width)]));
        right = _mm512_mask_set1_epi8(right, block.behind_row, static_cast<char>(row[reflect(width, width)]));
    }
    // Pairs of bytes: `left` has each even pixel in the upper, `right` each odd one in the lower.
    const __m512i even_pixels = _mm512_srli_epi16(left, 8);
    const __m512i odd_pixels = _mm512_and_si512(right, _mm512_set1_epi16(0xFF));
    return {_mm512_add_epi16(_mm512_maddubs_epi16(left, _mm512_set1_epi16(0x0201)), odd_pixels),
            _mm512_add_epi16(_mm512_maddubs_epi16(right, _mm512_set1_epi16(0x0102)), even_pixels)};
}

GLIOFED_AVX512_INLINE std::uint64_t above_threshold(RowSums sum) {
    // Negative where the sum reaches the threshold: the sign of each 16 bits goes to the byte of its pixel.
    const __m512i limit = _mm512_set1_epi16(kSmallestForegroundSum - 1);
    const __m512i even = _mm512_srli_epi16(_mm512_sub_epi16(limit, sum.even), 8);
    const __m512i odd = _mm512_sub_epi16(limit, sum.odd);
    constexpr int kAndThenOr = 0xEA;
    const __m512i upper_bytes = _mm512_set1_epi16(static_cast<short>(0xFF00));
    return _mm512_movepi8_mask(_mm512_ternarylogic_epi64(odd, upper_bytes, even, kAndThenOr));
}

// A few rows are done at a time, so that the image is read once from front to back: a walk down whole columns would
// fetch it line by line from memory. For each row: the one below it, one that is due soon, and where its bits go.
constexpr std::ptrdiff_t kBand = 8;
constexpr std::ptrdiff_t kAhead = 8;

struct Band {
    std::ptrdiff_t num_rows;
    const std::uint8_t* below[kBand];
    const std::uint8_t* ahead[kBand];
    std::uint64_t* bits[kBand];
};

Band band_at(const GrayView& image, std::ptrdiff_t first, BitMask& mask) {
    Band band{};
    for (std::ptrdiff_t y = first; y < first + kBand && y < image.height; ++y) {
        const std::ptrdiff_t ahead = y + kAhead < image.height ? y + kAhead : y;
        band.below[band.num_rows] = image.row(reflect(y + 1, image.height));
        band.ahead[band.num_rows] = image.row(ahead);
        band.bits[band.num_rows] = mask.row(y);
        ++band.num_rows;
    }
    return band;
}

// What a column of blocks hands from band to band: the row above the next, and the sum of the two before that.
struct ColumnState {
    RowSums here;
    RowSums pair_above;
};

template <bool kInsideRow>
GLIOFED_AVX512_INLINE ColumnState start_column(const GrayView& image, const Block& block) {
    const RowSums first = sum_row<kInsideRow>(image.row(0), image.width, block);
    return {first, sum_row<kInsideRow>(image.row(reflect(-1, image.height)), image.width, block) + first};
}

// With pairs of rows summed, 1 2 1 down a column is two pairs.
template <bool kInsideRow>
GLIOFED_AVX512_INLINE void blur_and_threshold(const Band& band, std::ptrdiff_t width, const Block& block,
                                              ColumnState& state) {
    RowSums here = state.here;
    RowSums pair_above = state.pair_above;
    for (std::ptrdiff_t i = 0; i < band.num_rows; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(band.ahead[i] + block.x), _MM_HINT_T0);
        const RowSums below = sum_row<kInsideRow>(band.below[i], width, block);
        const RowSums pair_below = here + below;
        const std::uint64_t bits = above_threshold(pair_above + pair_below);
        band.bits[i][block.x / 64] = kInsideRow ? bits : bits & block.here;
        here = below;
        pair_above = pair_below;
    }
    state = {here, pair_above};
}

GLIOFED_AVX512 void blur_and_threshold(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers) {
    constexpr auto kStateBytes = static_cast<std::ptrdiff_t>(sizeof(ColumnState));
    std::uint8_t* memory = buffers.scratch.at_least(static_cast<std::size_t>(mask.words_per_row * kStateBytes));
    auto* states = reinterpret_cast<ColumnState*>(memory);
    const std::ptrdiff_t width = image.width;
    for (std::ptrdiff_t x = 0; x < width; x += 64) {
        const Block block = block_at(x, width);
        states[x / 64] = block.inside_row() ? start_column<true>(image, block) : start_column<false>(image, block);
    }
    for (std::ptrdiff_t first = 0; first < image.height; first += kBand) {
        const Band band = band_at(image, first, mask);
        for (std::ptrdiff_t x = 0; x < width; x += 64) {
            const Block block = block_at(x, width);
            if (block.inside_row()) {
                blur_and_threshold<true>(band, width, block, states[x / 64]);
            } else {
                blur_and_threshold<false>(band, width, block, states[x / 64]);
            }
        }
    }
}

constexpr int kAndOfThree = 0x80;
constexpr int kOrOfThree = 0xFE;

// Eight words of every row, those at j: which exist, and which of their bits lie beyond the image.
struct Words {
    std::ptrdiff_t j;
    __mmask8 here, before, after;
    __m512i padding_here, padding_after;
};

GLIOFED_AVX512_INLINE __m512i padding_in(const BitMask& mask, std::ptrdiff_t j) {
    const std::ptrdiff_t last = mask.words_per_row - 1 - j;
    const auto lane = static_cast<__mmask8>(last >= 0 && last < 8 ? 1U << last : 0U);
    return _mm512_maskz_set1_epi64(lane, static_cast<long long>(mask.padding_bits()));
}

GLIOFED_AVX512_INLINE Words words_at(const BitMask& mask, std::ptrdiff_t j) {
    const std::ptrdiff_t left = mask.words_per_row - j;
    const std::uint64_t before = first_lanes(left + 1) & ~std::uint64_t{j == 0};
    return {j,
            static_cast<__mmask8>(first_lanes(left)),
            static_cast<__mmask8>(before),
            static_cast<__mmask8>(first_lanes(left - 1)),
            padding_in(mask, j),
            padding_in(mask, j + 1)};
}

// What lies outside the image never wins: it counts as ones in an erosion, as zeros in a dilation.
template <int kJoin>
GLIOFED_AVX512_INLINE __m512i outside() {
    return kJoin == kAndOfThree ? _mm512_set1_epi64(-1) : _mm512_setzero_si512();
}

template <int kJoin>
GLIOFED_AVX512_INLINE __m512i load(const std::uint64_t* words, __mmask8 exist, __m512i padding) {
    const __m512i loaded = _mm512_mask_loadu_epi64(outside<kJoin>(), exist, words);
    return kJoin == kAndOfThree ? _mm512_or_si512(loaded, padding) : loaded;
}

// Two pixels to either side along a row.
template <int kJoin>
GLIOFED_AVX512_INLINE __m512i morph_row(const std::uint64_t* row, const Words& at) {
    const __m512i here = load<kJoin>(row + at.j, at.here, at.padding_here);
    const __m512i before = load<kJoin>(row + at.j - 1, at.before, _mm512_setzero_si512());
    const __m512i after = load<kJoin>(row + at.j + 1, at.after, at.padding_after);
    const __m512i left = _mm512_ternarylogic_epi64(_mm512_shldi_epi64(here, before, 1),
                                                   _mm512_shldi_epi64(here, before, 2), here, kJoin);
    return _mm512_ternarylogic_epi64(_mm512_shrdi_epi64(here, after, 1), _mm512_shrdi_epi64(here, after, 2), left,
                                     kJoin);
}

// 5x5 erosion or dilation of eight words of every row; the last five rows stay in registers.
template <int kJoin>
GLIOFED_AVX512 void morph(const BitMask& in, std::ptrdiff_t j, BitMask& out) {
    const Words at = words_at(in, j);
    __m512i above2 = outside<kJoin>();
    __m512i above = outside<kJoin>();
    __m512i here = morph_row<kJoin>(in.row(0), at);
    __m512i below = in.height > 1 ? morph_row<kJoin>(in.row(1), at) : outside<kJoin>();
    for (std::ptrdiff_t y = 0; y < in.height; ++y) {
        const __m512i below2 = y + 2 < in.height ? morph_row<kJoin>(in.row(y + 2), at) : outside<kJoin>();
        const __m512i upper = _mm512_ternarylogic_epi64(above2, above, here, kJoin);
        const __m512i five = _mm512_ternarylogic_epi64(upper, below, below2, kJoin);
        _mm512_mask_storeu_epi64(out.row(y) + j, at.here, _mm512_andnot_si512(at.padding_here, five));
        above2 = above;
        above = here;
        here = below;
        below = below2;
    }
}

}  // namespace

void foreground_avx512(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers) {
    mask.reshape(image.height, image.width);
    buffers.spare.reshape(image.height, image.width);
    blur_and_threshold(image, mask, buffers);
    for (std::ptrdiff_t j = 0; j < mask.words_per_row; j += 8) morph<kAndOfThree>(mask, j, buffers.spare);
    for (std::ptrdiff_t j = 0; j < mask.words_per_row; j += 8) morph<kOrOfThree>(buffers.spare, j, mask);
}

}  // namespace gliofed
