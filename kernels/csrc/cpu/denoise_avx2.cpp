#include "denoise.h"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdlib>

#include "avx2.h"
#include "denoise_weights.h"

namespace gliofed {
namespace avx2 {
namespace {

constexpr std::ptrdiff_t kBlock = 32;
constexpr std::size_t kTableSize = 16;  // what one byte shuffle can look up
constexpr std::size_t kNumTables = 4;

// Weights from a half to one share their uppermost byte, so three are left to look up. Larger differences are one or
// two a block, and are fetched singly.
constexpr std::uint8_t kTopByte = 0x3F;
constexpr std::uint8_t kLargest = 58;

constexpr std::uint32_t bits_of(std::size_t difference) {
    return std::bit_cast<std::uint32_t>(kNeighbourWeights[difference]);
}
static_assert(bits_of(0) >> 24 == kTopByte && bits_of(kLargest) >> 24 == kTopByte);
static_assert(kLargest < kNumTables * kTableSize);

// Byte b of sixteen weights, little end first, twice: once for each half of a vector. From the second table on they
// hold what has to be flipped (xor) in the table before.
using ShuffleTable = std::array<std::uint8_t, 2 * kTableSize>;
using Tables = std::array<std::array<ShuffleTable, 3>, kNumTables>;

constexpr Tables make_tables() {
    Tables tables{};
    for (std::size_t t = 0; t < kNumTables; ++t) {
        for (std::size_t b = 0; b < 3; ++b) {
            for (std::size_t i = 0; i < 2 * kTableSize; ++i) {
                const std::size_t difference = kTableSize * t + i % kTableSize;
                const std::uint32_t before = t == 0 ? 0 : bits_of(difference - kTableSize);
                tables[t][b][i] = static_cast<std::uint8_t>((bits_of(difference) ^ before) >> (8 * b));
            }
        }
    }
    return tables;
}

alignas(64) constexpr Tables kTables = make_tables();

// The lower three bytes of 32 weights.
struct WeightBytes {
    __m256i byte0;
    __m256i byte1;
    __m256i byte2;
};

GLIOFED_AVX2_INLINE __m256i look_up(__m256i before, const ShuffleTable& table, __m256i index) {
    return _mm256_xor_si256(before, _mm256_shuffle_epi8(load256(table.data()), index));
}

// Table t acts on differences from 16 * t on: less 16 * t they are below 128, whereas smaller ones become negative
// bytes, for which a shuffle gives zero.
GLIOFED_AVX2_INLINE WeightBytes look_up_weights(__m256i differences) {
    const __m256i zero = _mm256_setzero_si256();
    WeightBytes found{zero, zero, zero};
    for (std::size_t t = 0; t < kNumTables; ++t) {
        found.byte0 = look_up(found.byte0, kTables[t][0], differences);
        found.byte1 = look_up(found.byte1, kTables[t][1], differences);
        found.byte2 = look_up(found.byte2, kTables[t][2], differences);
        differences = _mm256_sub_epi8(differences, _mm256_set1_epi8(kTableSize));
    }
    return found;
}

// Unpacking works within halves: the groups of four differences are dealt out so that it yields them in order.
GLIOFED_AVX2_INLINE __m256i deal_out(__m256i differences) {
    return _mm256_permutevar8x32_epi32(differences, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}

GLIOFED_AVX2_INLINE void store_weights(const WeightBytes& bytes, float* weights) {
    const __m256i top = _mm256_set1_epi8(kTopByte);
    const __m256i low01 = _mm256_unpacklo_epi8(bytes.byte0, bytes.byte1);
    const __m256i low23 = _mm256_unpacklo_epi8(bytes.byte2, top);
    const __m256i high01 = _mm256_unpackhi_epi8(bytes.byte0, bytes.byte1);
    const __m256i high23 = _mm256_unpackhi_epi8(bytes.byte2, top);
    store256(weights, _mm256_unpacklo_epi16(low01, low23));
    store256(weights + 8, _mm256_unpackhi_epi16(low01, low23));
    store256(weights + 16, _mm256_unpacklo_epi16(high01, high23));
    store256(weights + 24, _mm256_unpackhi_epi16(high01, high23));
}

float weight_between(std::uint8_t a, std::uint8_t b) {
    return kNeighbourWeights[static_cast<std::size_t>(std::abs(a - b))];
}

// Weights between 32 pixels of a and of b, one by one.
GLIOFED_AVX2_INLINE void weigh_block(const std::uint8_t* a, const std::uint8_t* b, float* weights) {
    const __m256i from_a = load256(a);
    const __m256i from_b = load256(b);
    const __m256i differences = _mm256_or_si256(_mm256_subs_epu8(from_a, from_b), _mm256_subs_epu8(from_b, from_a));
    store_weights(look_up_weights(deal_out(differences)), weights);
    const __m256i largest = _mm256_set1_epi8(kLargest);
    const __m256i within = _mm256_cmpeq_epi8(_mm256_max_epu8(differences, largest), largest);
    auto beyond = ~static_cast<std::uint32_t>(_mm256_movemask_epi8(within));
    for (; beyond != 0; beyond &= beyond - 1) {
        const int i = std::countr_zero(beyond);
        weights[i] = weight_between(a[i], b[i]);
    }
}

// Levels of 32 pixels as floats.
GLIOFED_AVX2_INLINE void widen_block(const std::uint8_t* pixels, float* levels) {
    for (std::ptrdiff_t i = 0; i < kBlock; i += 8) {
        const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixels + i));
        _mm256_storeu_ps(levels + i, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight)));
    }
}

// Of one row of pixels: the levels as floats, the weights between neighbours in the row, and those to the row below.
struct Row {
    float* levels;
    float* right;  // that of a pixel's left neighbour is the one before
    float* down;
};

// 32 filtered levels. The order of the sums is the scalar twin's. Weights are symmetric: those to the row above are
// that row's to the row below. The four quarters go step by step together: one after the other, each would wait for its
// own last step, and the processor does not look far enough ahead to fill the time.
GLIOFED_AVX2_INLINE void filter_block(const Row& above, const Row& here, const Row& below, std::ptrdiff_t x,
                                      std::uint8_t* out) {
    __m256 weight[4], total[4], sum[4];
    for (std::ptrdiff_t q = 0; q < 4; ++q) {
        weight[q] = _mm256_loadu_ps(above.down + x + 8 * q);
        sum[q] = _mm256_mul_ps(weight[q], _mm256_loadu_ps(above.levels + x + 8 * q));
        total[q] = weight[q];
    }
    for (std::ptrdiff_t q = 0; q < 4; ++q) {
        weight[q] = _mm256_loadu_ps(here.right + x + 8 * q - 1);
        sum[q] = _mm256_fmadd_ps(weight[q], _mm256_loadu_ps(here.levels + x + 8 * q - 1), sum[q]);
        total[q] = _mm256_add_ps(total[q], weight[q]);
    }
    for (std::ptrdiff_t q = 0; q < 4; ++q) {
        sum[q] = _mm256_add_ps(sum[q], _mm256_loadu_ps(here.levels + x + 8 * q));
        total[q] = _mm256_add_ps(total[q], _mm256_set1_ps(1.0F));
    }
    for (std::ptrdiff_t q = 0; q < 4; ++q) {
        weight[q] = _mm256_loadu_ps(here.right + x + 8 * q);
        sum[q] = _mm256_fmadd_ps(weight[q], _mm256_loadu_ps(here.levels + x + 8 * q + 1), sum[q]);
        total[q] = _mm256_add_ps(total[q], weight[q]);
    }
    for (std::ptrdiff_t q = 0; q < 4; ++q) {
        weight[q] = _mm256_loadu_ps(here.down + x + 8 * q);
        sum[q] = _mm256_fmadd_ps(weight[q], _mm256_loadu_ps(below.levels + x + 8 * q), sum[q]);
        total[q] = _mm256_add_ps(total[q], weight[q]);
    }
    for (std::ptrdiff_t q = 0; q < 4; ++q) sum[q] = _mm256_div_ps(sum[q], total[q]);
    const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(sum[0]), _mm256_cvtps_epi32(sum[1]));
    const __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32(sum[2]), _mm256_cvtps_epi32(sum[3]));
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    store256(out + x, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), in_order));
}

// The image, and the rows that have been prepared of it: row y in slot y % kSlots.
class PreparedRows {
  public:
    static constexpr std::ptrdiff_t kSlots = 4;  // three for the filter, one that is being prepared

    PreparedRows(const std::uint8_t* in, std::ptrdiff_t side, DenoiseBuffers& buffers) : in_(in), side_(side) {
        // Rows begin on a vector and have room for one more element on either side.
        const std::ptrdiff_t stride = (side + 7) / 8 * 8 + 16;
        float* levels = buffers.levels.at_least(static_cast<std::size_t>(kSlots * stride)) + 8;
        float* weights = buffers.weights.at_least(static_cast<std::size_t>(2 * kSlots * stride)) + 8;
        for (std::ptrdiff_t i = 0; i < kSlots; ++i) {
            rows_[static_cast<std::size_t>(i)] = {levels + i * stride, weights + i * stride,
                                                  weights + (kSlots + i) * stride};
        }
    }

    // y from -1 on: row -1 is the reflected one.
    const Row& row(std::ptrdiff_t y) const { return rows_[static_cast<std::size_t>((y + kSlots) % kSlots)]; }
    const std::uint8_t* pixels(std::ptrdiff_t y) const {
        const std::ptrdiff_t reflected = y < 0 ? -y : y < side_ ? y : 2 * side_ - 2 - y;
        return in_ + reflected * side_;
    }

    // What lies beside row y. Well before it is read: a vector that is loaded just after one of its elements was stored
    // waits for the store.
    void prepare_ends(std::ptrdiff_t y) const {
        const std::uint8_t* here = pixels(y);
        const Row& to = row(y);
        to.levels[-1] = here[1];
        to.levels[side_] = here[side_ - 2];
        to.right[-1] = weight_between(here[0], here[1]);
        to.right[side_ - 1] = weight_between(here[side_ - 1], here[side_ - 2]);
    }

    GLIOFED_AVX2_INLINE void prepare_block(const std::uint8_t* here, const std::uint8_t* below, const Row& to,
                                           std::ptrdiff_t x, std::ptrdiff_t last_pair) {
        const std::ptrdiff_t x_right = std::min(x, last_pair);
        widen_block(here + x, to.levels + x);
        weigh_block(here + x_right, here + x_right + 1, to.right + x_right);
        weigh_block(here + x, below + x, to.down + x);
    }

  private:
    const std::uint8_t* in_;
    std::ptrdiff_t side_;
    std::array<Row, kSlots> rows_;
};

}  // namespace
}  // namespace avx2

GLIOFED_AVX2 void denoise_avx2(const std::uint8_t* in, std::uint8_t* out, std::ptrdiff_t side,
                               DenoiseBuffers& buffers) {
    if (side <= avx2::kBlock) {
        denoise_scalar(in, out, side, buffers);
        return;
    }
    const avx2::PreparedRows rows(in, side, buffers);
    const std::ptrdiff_t blocks = avx2::num_steps(side, avx2::kBlock);
    const std::ptrdiff_t last_pair = side - 1 - avx2::kBlock;
    // A block of one row is filtered while one of the row after next is prepared: divisions and look-ups keep
    // different parts of the processor busy.
    for (std::ptrdiff_t y = -3; y < side; ++y) {
        const std::ptrdiff_t next = y + 2;
        const std::uint8_t* here = rows.pixels(next);
        const std::uint8_t* below = rows.pixels(next + 1);
        const avx2::Row to = rows.row(next);
        rows.prepare_ends(next);
        const avx2::Row above = rows.row(y - 1), centre = rows.row(y), beneath = rows.row(y + 1);
        for (std::ptrdiff_t i = 0; i < blocks; ++i) {
            const std::ptrdiff_t x = avx2::step_start(i, side, avx2::kBlock);
            avx2::PreparedRows::prepare_block(here, below, to, x, last_pair);
            if (y >= 0) avx2::filter_block(above, centre, beneath, x, out + y * side);
        }
    }
}

}  // namespace gliofed
