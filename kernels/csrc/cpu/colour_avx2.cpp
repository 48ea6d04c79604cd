#include "colour.h"

#include <algorithm>
#include <array>

#include "avx2.h"
#include "bone_table.h"

namespace gliofed {
namespace avx2 {
namespace {

constexpr std::ptrdiff_t kMapStep = 32;

// BONE's channels run at 7/8 of the grey level, but for a third of the levels each in which they climb faster: blue
// below 96, green from there to 191, red above. So within eight levels that begin at a multiple of eight,
//   channel = base + climb[level % 8] + (0 or 1),
// with one climb wherever they run at 7/8 and two for where they climb. So there is little to look up: a base for each
// of the 32 groups of eight, and a bit for each of its levels, in shuffle tables of 16 entries. Looking up all 256
// levels of each channel costs twice as much.
using ShuffleTable = std::array<std::uint8_t, 16>;
using Climb = std::array<std::uint8_t, 8>;
constexpr Climb kRunning{0, 0, 1, 2, 3, 3, 4, 5};
constexpr Climb kClimbing{0, 1, 2, 3, 4, 6, 7, 8};  // blue and green
constexpr Climb kClimbingRed{0, 1, 2, 4, 5, 6, 8, 9};
constexpr std::size_t kBlue = 0, kGreen = 1, kRed = 2;
constexpr std::size_t kFirstGreen = 96, kFirstRed = 192;

constexpr Climb climb_at(std::size_t channel, std::size_t level) {
    const std::size_t climbing = level < kFirstGreen ? kBlue : level < kFirstRed ? kGreen : kRed;
    if (channel != climbing) return kRunning;
    return channel == kRed ? kClimbingRed : kClimbing;
}

// For the groups from 16 on, what has to be flipped (xor) in the table of the others.
struct ChannelTables {
    std::array<ShuffleTable, 2> base;
    std::array<ShuffleTable, 2> bits;
};

constexpr ChannelTables channel_tables(std::size_t channel) {
    ChannelTables tables{};
    for (std::size_t group = 0; group < 32; ++group) {
        std::array<int, 8> rest{};
        for (std::size_t i = 0; i < 8; ++i) {
            rest[i] = kBoneBgr[8 * group + i][channel] - climb_at(channel, 8 * group)[i];
        }
        const int base = *std::min_element(rest.begin(), rest.end());
        int bits = 0;
        for (std::size_t i = 0; i < 8; ++i) bits |= (rest[i] - base) << i;
        tables.base[group / 16][group % 16] = static_cast<std::uint8_t>(base);
        tables.bits[group / 16][group % 16] = static_cast<std::uint8_t>(bits);
    }
    for (std::size_t i = 0; i < 16; ++i) {
        tables.base[1][i] ^= tables.base[0][i];
        tables.bits[1][i] ^= tables.bits[0][i];
    }
    return tables;
}

alignas(64) constexpr std::array<ChannelTables, 3> kChannels{channel_tables(kBlue), channel_tables(kGreen),
                                                             channel_tables(kRed)};

constexpr std::uint8_t composed(std::size_t channel, std::size_t level) {
    const ChannelTables& tables = kChannels[channel];
    const std::size_t i = level / 8 % 16;
    const bool second = level >= 128;
    const int base = tables.base[0][i] ^ (second ? tables.base[1][i] : 0);
    const int bits = tables.bits[0][i] ^ (second ? tables.bits[1][i] : 0);
    return static_cast<std::uint8_t>(base + climb_at(channel, level)[level % 8] + (bits >> level % 8 & 1));
}

constexpr bool composes_bone() {
    for (std::size_t level = 0; level < 256; ++level) {
        for (std::size_t c = 0; c < 3; ++c) {
            if (composed(c, level) != kBoneBgr[level][c]) return false;
        }
    }
    return true;
}
static_assert(composes_bone());

// Tables by level % 16: `climb` twice, less `running` twice.
constexpr ShuffleTable twice(const Climb& climb, const Climb& running) {
    ShuffleTable table{};
    for (std::size_t i = 0; i < 16; ++i) table[i] = static_cast<std::uint8_t>(climb[i % 8] - running[i % 8]);
    return table;
}
alignas(64) constexpr std::array<ShuffleTable, 4> kByLevel{
    twice(kRunning, {}), twice(kClimbing, kRunning), twice(kClimbingRed, kRunning),
    twice({1, 2, 4, 8, 16, 32, 64, 128}, {})};

GLIOFED_AVX2_INLINE __m256i look_up(const ShuffleTable& table, __m256i index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table.data())), index);
}

// A second index below zero makes its shuffle give zero.
GLIOFED_AVX2_INLINE __m256i look_up(const std::array<ShuffleTable, 2>& tables, __m256i group, __m256i group_less_16) {
    return _mm256_xor_si256(look_up(tables[0], group), look_up(tables[1], group_less_16));
}

// What the channels share of 32 levels.
struct Levels {
    __m256i group;  // of eight
    __m256i group_less_16;
    __m256i bit;
};

GLIOFED_AVX2_INLINE __m256i channel_of(const ChannelTables& tables, const Levels& levels, __m256i climb) {
    const __m256i base = look_up(tables.base, levels.group, levels.group_less_16);
    const __m256i bits = look_up(tables.bits, levels.group, levels.group_less_16);
    const __m256i minus_one = _mm256_cmpeq_epi8(_mm256_and_si256(bits, levels.bit), levels.bit);
    return _mm256_sub_epi8(_mm256_add_epi8(base, climb), minus_one);
}

GLIOFED_AVX2_INLINE void map_step(const std::uint8_t* gray, std::uint8_t* mapped, std::ptrdiff_t stride) {
    const __m256i gray_levels = load256(gray);
    const __m256i by_level = _mm256_and_si256(gray_levels, _mm256_set1_epi8(15));
    const __m256i group = _mm256_and_si256(_mm256_srli_epi16(gray_levels, 3), _mm256_set1_epi8(31));
    const __m256i running = look_up(kByLevel[0], by_level);
    const Levels levels{group, _mm256_sub_epi8(group, _mm256_set1_epi8(16)), look_up(kByLevel[3], by_level)};
    const __m256i below_green = _mm256_cmpgt_epi8(_mm256_set1_epi8(kFirstGreen / 8), group);
    const __m256i red = _mm256_cmpgt_epi8(group, _mm256_set1_epi8(kFirstRed / 8 - 1));
    const __m256i climbing = look_up(kByLevel[1], by_level);
    const __m256i more_blue = _mm256_and_si256(climbing, below_green);
    const __m256i more_green = _mm256_andnot_si256(_mm256_or_si256(below_green, red), climbing);
    const __m256i more_red = _mm256_and_si256(look_up(kByLevel[2], by_level), red);
    store256(mapped, channel_of(kChannels[kBlue], levels, _mm256_add_epi8(running, more_blue)));
    store256(mapped + stride, channel_of(kChannels[kGreen], levels, _mm256_add_epi8(running, more_green)));
    store256(mapped + 2 * stride, channel_of(kChannels[kRed], levels, _mm256_add_epi8(running, more_red)));
}

// Blue, green and red of one row of grey levels, one behind the other.
GLIOFED_AVX2_INLINE void map_row(const std::uint8_t* gray, std::uint8_t* mapped, std::ptrdiff_t width) {
    for (std::ptrdiff_t i = 0; i < num_steps(width, kMapStep); ++i) {
        const std::ptrdiff_t x = step_start(i, width, kMapStep);
        map_step(gray + x, mapped + x, width);
    }
}

// Which of BONE's channels a plane's map is: at this level they differ.
std::ptrdiff_t channel_behind(const std::array<std::uint8_t, 256>& bone) {
    constexpr std::size_t kLevel = 128;
    constexpr const std::array<std::uint8_t, 3>& kChannelsThere = kBoneBgr[kLevel];
    static_assert(kChannelsThere[kBlue] > kChannelsThere[kGreen] && kChannelsThere[kGreen] > kChannelsThere[kRed]);
    return std::find(kChannelsThere.begin(), kChannelsThere.end(), bone[kLevel]) - kChannelsThere.begin();
}

struct Line {
    __m256 gain;
    __m256 offset;
};

GLIOFED_AVX2_INLINE __m256i normalise(__m256i levels, const Line& line) {
    return _mm256_castps_si256(_mm256_fmadd_ps(_mm256_cvtepi32_ps(levels), line.gain, line.offset));
}

// Sixteen levels of 16 bits.
GLIOFED_AVX2_INLINE void store_normalised(float* out, __m256i levels, const Line& line) {
    store256(out, normalise(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(levels)), line));
    store256(out + 8, normalise(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(levels, 1)), line));
}

// The upper 16 bits are the nearest bfloat16, ties to even.
GLIOFED_AVX2_INLINE __m256i round_to_bfloat16(__m256i bits) {
    const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), is_odd);
}

// Split by even and odd columns, which shifts and blends can do, and undo, without moving data across the vector.
GLIOFED_AVX2_INLINE void store_normalised(Bfloat16* out, __m256i levels, const Line& line) {
    const __m256i even = round_to_bfloat16(normalise(_mm256_and_si256(levels, _mm256_set1_epi32(0xFFFF)), line));
    const __m256i odd = round_to_bfloat16(normalise(_mm256_srli_epi32(levels, 16), line));
    store256(out, _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xAA));
}

// Two rows along x, and their weights in the y pass.
struct RowPair {
    const std::int16_t* lower;
    const std::int16_t* upper;
    __m256i weight_lower;
    __m256i weight_upper;
};

template <class T>
GLIOFED_AVX2_INLINE void finish_row(const RowPair& rows, const Line& line, T* out, std::ptrdiff_t width) {
    for (std::ptrdiff_t i = 0; i < num_steps(width, kRowStep); ++i) {
        const std::ptrdiff_t x = step_start(i, width, kRowStep);
        const __m256i levels =
            blend(load256(rows.lower + x), load256(rows.upper + x), rows.weight_lower, rows.weight_upper);
        store_normalised(out + x, levels, line);
    }
}

// Three rows at once share the loading of the plan.
template <std::ptrdiff_t kWindows>
GLIOFED_AVX2_INLINE void interpolate_three_rows(const std::uint8_t* sources, std::ptrdiff_t source_stride,
                                                const PlanTables& plan, std::int16_t* rows, std::ptrdiff_t width) {
    for (std::ptrdiff_t i = 0; i < num_steps(width, kRowStep); ++i) {
        const std::ptrdiff_t x = step_start(i, width, kRowStep);
        const PlanStep<kWindows> step = PlanStep<kWindows>::load(plan, i);
        for (std::ptrdiff_t c = 0; c < 3; ++c) {
            store256(rows + c * width + x, interpolate(sources + c * source_stride, step));
        }
    }
}

template <std::ptrdiff_t kWindows, class T>
GLIOFED_AVX2 void colour_rows(const std::uint8_t* gray, std::ptrdiff_t source_side, const LevelTables<T>& tables,
                              T* out, std::ptrdiff_t side, ColourBuffers& buffers) {
    const LinearAxis& y_axis = buffers.resize.y_axis;
    const PlanTables plan = tables_of(buffers.resize.plan);
    std::uint8_t* mapped = buffers.mapped.at_least(static_cast<std::size_t>(3 * source_side));
    // Source row y lives in slot y % 2; two neighbouring rows never collide.
    std::int16_t* rows = buffers.resize.rows.at_least(static_cast<std::size_t>(6 * side));
    std::array<std::int32_t, 2> held{-1, -1};
    for (std::ptrdiff_t y = 0; y < side; ++y) {
        const auto k = static_cast<std::size_t>(y);
        const std::int32_t lower = y_axis.index_lower[k];
        const std::int32_t upper = y_axis.index_upper[k];
        for (const std::int32_t needed : {lower, upper}) {
            std::int32_t& in_slot = held[static_cast<std::size_t>(needed % 2)];
            if (in_slot == needed) continue;
            in_slot = needed;
            map_row(gray + needed * source_side, mapped, source_side);
            interpolate_three_rows<kWindows>(mapped, source_side, plan, rows + 3 * (needed % 2) * side, side);
        }
        for (std::ptrdiff_t c = 0; c < 3; ++c) {
            const auto plane = static_cast<std::size_t>(c);
            const std::int16_t* channel = rows + channel_behind(tables.bone[plane]) * side;
            const RowPair pair{channel + 3 * (lower % 2) * side, channel + 3 * (upper % 2) * side,
                               _mm256_set1_epi16(y_axis.weight_lower[k]), _mm256_set1_epi16(y_axis.weight_upper[k])};
            const Line line{_mm256_set1_ps(tables.gain[plane]), _mm256_set1_ps(tables.offset[plane])};
            finish_row(pair, line, out + (c * side + y) * side, side);
        }
    }
}

}  // namespace
}  // namespace avx2

template <class T>
void colour_avx2(const std::uint8_t* gray, std::ptrdiff_t source_side, const LevelTables<T>& tables, T* out,
                 std::ptrdiff_t side, ColourBuffers& buffers) {
    ResizeBuffers& resize = buffers.resize;
    if (resize.x_axis.fit(source_side, side, EdgeRule::kClampWeight)) {
        avx2::plan_row(resize.x_axis, source_side, resize.plan);
    }
    if (resize.plan.window == 0 || source_side < avx2::kMapStep) {
        colour_scalar(gray, source_side, tables, out, side, buffers);
        return;
    }
    resize.y_axis.fit(source_side, side, EdgeRule::kClampIndex);
    const auto colour = resize.plan.window == 2 * avx2::kWindow ? &avx2::colour_rows<2, T> : &avx2::colour_rows<4, T>;
    colour(gray, source_side, tables, out, side, buffers);
}

template void colour_avx2(const std::uint8_t*, std::ptrdiff_t, const LevelTables<float>&, float*, std::ptrdiff_t,
                          ColourBuffers&);
template void colour_avx2(const std::uint8_t*, std::ptrdiff_t, const LevelTables<Bfloat16>&, Bfloat16*, std::ptrdiff_t,
                          ColourBuffers&);

}  // namespace gliofed
