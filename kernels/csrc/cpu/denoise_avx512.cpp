#include "denoise.h"

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "cpu/avx512.h"
#include "denoise_weights.h"

namespace gliofed {
namespace {

using avx512::ByteTable;
using avx512::Floats;

constexpr std::ptrdiff_t kGroup = 64;

// The neighbour weights as four tables, one for each byte of a float32: float32 look-ups among 256 entries are
// gathers otherwise, and those cost several times more.
using WeightBytes = std::array<std::array<std::uint8_t, 256>, 4>;

constexpr WeightBytes split_weights() {
    WeightBytes bytes{};
    for (std::size_t level = 0; level < 256; ++level) {
        const auto bits = std::bit_cast<std::uint32_t>(kNeighbourWeights[level]);
        for (std::size_t b = 0; b < 4; ++b) bytes[b][level] = static_cast<std::uint8_t>(bits >> (8 * b));
    }
    return bytes;
}

alignas(64) constexpr WeightBytes kWeightBytes = split_weights();

// Order in which join_bytes gives floats back in sequence.
constexpr std::array<std::uint8_t, 64> order_for_join() {
    std::array<std::uint8_t, 64> order{};
    for (std::size_t i = 0; i < 64; ++i) {
        const std::size_t lane = i / 16;
        const std::size_t quarter = i % 16 / 4;
        order[i] = static_cast<std::uint8_t>(16 * quarter + 4 * lane + i % 4);
    }
    return order;
}

alignas(64) constexpr std::array<std::uint8_t, 64> kOrderForJoin = order_for_join();

constexpr std::array<std::uint8_t, 64> one_before() {
    std::array<std::uint8_t, 64> order{};
    for (std::size_t i = 1; i < 64; ++i) order[i] = static_cast<std::uint8_t>(i - 1);
    return order;
}

alignas(64) constexpr std::array<std::uint8_t, 64> kOneBefore = one_before();

GLIOFED_AVX512_INLINE __m512i absolute_difference(__m512i a, __m512i b) {
    return _mm512_or_si512(_mm512_subs_epu8(a, b), _mm512_subs_epu8(b, a));
}

// Weights between the pixels of two vectors of bytes.
GLIOFED_AVX512_INLINE Floats weigh(__m512i a, __m512i b) {
    const __m512i difference = absolute_difference(a, b);
    const __m512i index = _mm512_permutexvar_epi8(_mm512_load_si512(kOrderForJoin.data()), difference);
    // Neighbours seldom differ by 64 levels, and a quarter of the tables is one permutation each.
    if (_mm512_cmpgt_epu8_mask(difference, _mm512_set1_epi8(63)) == 0) [[likely]] {
        return avx512::join_bytes(_mm512_permutexvar_epi8(index, _mm512_load_si512(kWeightBytes[0].data())),
                                  _mm512_permutexvar_epi8(index, _mm512_load_si512(kWeightBytes[1].data())),
                                  _mm512_permutexvar_epi8(index, _mm512_load_si512(kWeightBytes[2].data())),
                                  _mm512_permutexvar_epi8(index, _mm512_load_si512(kWeightBytes[3].data())));
    }
    return avx512::join_bytes(avx512::look_up(avx512::load_table(kWeightBytes[0].data()), index),
                              avx512::look_up(avx512::load_table(kWeightBytes[1].data()), index),
                              avx512::look_up(avx512::load_table(kWeightBytes[2].data()), index),
                              avx512::look_up(avx512::load_table(kWeightBytes[3].data()), index));
}

// 64 pixels of one row and the two beyond their ends.
struct Pixels {
    __m512i bytes;
    Floats levels;
    std::uint8_t left;
    std::uint8_t right;
    float weight_right;  // between the last pixel and `right`
};

// Sixteen floats of `floats` from place 16 * k + shift on, shift being -1 or 1; `end` stands beyond either end.
template <int kShift>
GLIOFED_AVX512_INLINE __m512 shifted(const Floats& floats, int k, float end) {
    constexpr int kLanes = kShift < 0 ? 15 : 1;
    const int other = k + kShift;
    const __m512 neighbour = other < 0 || other > 3 ? _mm512_set1_ps(end) : floats.quarter[other & 3];
    const __m512 low = kShift < 0 ? neighbour : floats.quarter[k];
    const __m512 high = kShift < 0 ? floats.quarter[k] : neighbour;
    return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(high), _mm512_castps_si512(low), kLanes));
}

// Where 64 columns of an image lie: `rows` holds whole groups of 64, of which the image has `side` columns.
struct Strip {
    const std::uint8_t* rows;
    std::ptrdiff_t stride;
    std::ptrdiff_t side;
    std::ptrdiff_t x;
};

GLIOFED_AVX512_INLINE Pixels load(const Strip& strip, std::ptrdiff_t y) {
    const std::uint8_t* row = strip.rows + y * strip.stride;
    const std::uint8_t* at = row + strip.x;
    Pixels pixels;
    pixels.bytes = _mm512_loadu_si512(at);
    for (int k = 0; k < 4; ++k) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * k));
        pixels.levels.quarter[k] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen));
    }
    // Beyond the image the border is reflected.
    pixels.left = strip.x == 0 ? row[1] : at[-1];
    pixels.right = strip.x + kGroup < strip.side ? at[kGroup] : row[strip.side - 2];
    pixels.weight_right = kNeighbourWeights[static_cast<std::size_t>(std::abs(at[kGroup - 1] - pixels.right))];
    return pixels;
}

GLIOFED_AVX512_INLINE Floats weigh_left(const Pixels& pixels) {
    const __m512i one_before = _mm512_permutexvar_epi8(_mm512_load_si512(kOneBefore.data()), pixels.bytes);
    return weigh(pixels.bytes, _mm512_mask_set1_epi8(one_before, 1, static_cast<char>(pixels.left)));
}

// Sixteen pixels, in the scalar twin's order of sums and roundings.
GLIOFED_AVX512_INLINE __m512i filter(const Floats& up, const Pixels& here, const Floats& down, const Floats& weight_up,
                                     const Floats& weight_left, const Floats& weight_down, int k) {
    const __m512 weight_right = shifted<1>(weight_left, k, here.weight_right);
    __m512 total = _mm512_add_ps(weight_up.quarter[k], weight_left.quarter[k]);
    total = _mm512_add_ps(_mm512_add_ps(total, _mm512_set1_ps(1.0F)), weight_right);
    total = _mm512_add_ps(total, weight_down.quarter[k]);
    __m512 sum = _mm512_mul_ps(weight_up.quarter[k], up.quarter[k]);
    sum = _mm512_fmadd_ps(shifted<-1>(here.levels, k, here.left), weight_left.quarter[k], sum);
    sum = _mm512_add_ps(sum, here.levels.quarter[k]);
    sum = _mm512_fmadd_ps(shifted<1>(here.levels, k, here.right), weight_right, sum);
    sum = _mm512_fmadd_ps(down.quarter[k], weight_down.quarter[k], sum);
    constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return _mm512_cvt_roundps_epi32(_mm512_div_ps(sum, total), kNearestEven);
}

// Packing works within 128-bit lanes and deals the pixels out as joining bytes does; the same order undoes it.
GLIOFED_AVX512_INLINE __m512i pack(__m512i first, __m512i second, __m512i third, __m512i fourth) {
    const __m512i packed = _mm512_packus_epi16(_mm512_packs_epi32(first, second), _mm512_packs_epi32(third, fourth));
    return _mm512_permutexvar_epi8(_mm512_load_si512(kOrderForJoin.data()), packed);
}

// Down 64 columns, so that what a row shares with the one below stays in registers: its levels, and the weights
// between the two, which are the lower row's weights upwards.
GLIOFED_AVX512 void denoise_strip(const Strip& strip, std::uint8_t* out) {
    const std::uint64_t valid = avx512::first_lanes(strip.side - strip.x);
    Pixels here = load(strip, 0);
    const Pixels mirrored = load(strip, 1);
    Floats up = mirrored.levels;
    Floats weight_up = weigh(here.bytes, mirrored.bytes);
    for (std::ptrdiff_t y = 0; y < strip.side; ++y) {
        const Pixels down = load(strip, y + 1 < strip.side ? y + 1 : strip.side - 2);
        const Floats weight_down = weigh(here.bytes, down.bytes);
        const Floats weight_left = weigh_left(here);
        __m512i levels[4];
        for (int k = 0; k < 4; ++k) {
            levels[k] = filter(up, here, down.levels, weight_up, weight_left, weight_down, k);
        }
        const __m512i packed = pack(levels[0], levels[1], levels[2], levels[3]);
        _mm512_mask_storeu_epi8(out + y * strip.side + strip.x, valid, packed);
        up = here.levels;
        weight_up = weight_down;
        here = down;
    }
}

// The image with rows of whole groups: itself, or a copy in which each row is followed by the pixel that reflection
// puts there.
Strip whole_groups(const std::uint8_t* in, std::ptrdiff_t side, DenoiseBuffers& buffers) {
    const std::ptrdiff_t stride = (side + kGroup - 1) / kGroup * kGroup;
    if (stride == side) return {in, side, side, 0};
    std::uint8_t* copy = buffers.pixels.at_least(static_cast<std::size_t>(stride * side));
    for (std::ptrdiff_t y = 0; y < side; ++y) {
        std::uint8_t* row = copy + y * stride;
        std::memcpy(row, in + y * side, static_cast<std::size_t>(side));
        std::memset(row + side, row[side - 2], static_cast<std::size_t>(stride - side));
    }
    return {copy, stride, side, 0};
}

}  // namespace

void denoise_avx512(const std::uint8_t* in, std::uint8_t* out, std::ptrdiff_t side, DenoiseBuffers& buffers) {
    Strip strip = whole_groups(in, side, buffers);
    for (; strip.x < side; strip.x += kGroup) denoise_strip(strip, out);
}

}  // namespace gliofed
