#include "colour.h"

#include <array>
#include <cstring>
#include <numeric>

#include "cpu/avx512.h"
#include "cpu/avx512_rows.h"

namespace gliofed {
namespace {

using avx512::ByteTable;
using avx512::first_lanes;
using avx512::kGroup;

// BONE channels of one row of grey levels.
template <class T>
GLIOFED_AVX512_INLINE void map_row(const std::uint8_t* gray, std::ptrdiff_t length, const LevelTables<T>& tables,
                            std::uint8_t* mapped, std::ptrdiff_t stride) {
    for (std::size_t c = 0; c < 3; ++c) {
        const ByteTable bone = avx512::load_table(tables.bone[c].data());
        std::uint8_t* out = mapped + static_cast<std::ptrdiff_t>(c) * stride;
        for (std::ptrdiff_t x = 0; x < length; x += 64) {
            const __m512i levels = _mm512_maskz_loadu_epi8(first_lanes(length - x), gray + x);
            _mm512_store_si512(out + x, avx512::look_up(bone, levels));
        }
    }
}

struct RowPair {
    const std::int16_t* lower;
    const std::int16_t* upper;
    std::int16_t weight_lower;
    std::int16_t weight_upper;
};

// Levels of 32 outputs, 16 bits each.
GLIOFED_AVX512_INLINE __m512i blend(RowPair rows, std::ptrdiff_t x) {
    const __m512i a = _mm512_mulhi_epi16(_mm512_load_si512(rows.lower + x), _mm512_set1_epi16(rows.weight_lower));
    const __m512i b = _mm512_mulhi_epi16(_mm512_load_si512(rows.upper + x), _mm512_set1_epi16(rows.weight_upper));
    return _mm512_srli_epi16(_mm512_add_epi16(_mm512_add_epi16(a, b), _mm512_set1_epi16(2)), 2);
}

GLIOFED_AVX512_INLINE __m512 normalise(__m256i levels, __m512 gain, __m512 offset) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(levels)), gain, offset);
}

// How a finished vector leaves: through the caches, or past them (then `to` is a cache line).
struct Store {
    GLIOFED_AVX512_INLINE static void put(void* to, __m512i vector) { _mm512_storeu_si512(to, vector); }
};
struct Stream {
    GLIOFED_AVX512_INLINE static void put(void* to, __m512i vector) {
        _mm512_stream_si512(static_cast<__m512i*>(to), vector);
    }
};

// These write whole groups: `out` has room for a multiple of 32 outputs.
template <class Way>
GLIOFED_AVX512_INLINE void finish_row(RowPair rows, const LevelTables<float>& tables, std::size_t c, float* out,
                               std::ptrdiff_t length) {
    const __m512 gain = _mm512_set1_ps(tables.gain[c]);
    const __m512 offset = _mm512_set1_ps(tables.offset[c]);
    for (std::ptrdiff_t x = 0; x < length; x += kGroup) {
        const __m512i levels = blend(rows, x);
        const __m512 first = normalise(_mm512_castsi512_si256(levels), gain, offset);
        const __m512 second = normalise(_mm512_extracti64x4_epi64(levels, 1), gain, offset);
        Way::put(out + x, _mm512_castps_si512(first));
        Way::put(out + x + 16, _mm512_castps_si512(second));
    }
}

// By table, because rounding to bfloat16 takes more instructions than two look-ups of a byte each.
template <class Way>
GLIOFED_AVX512_INLINE void finish_row(RowPair rows, const LevelTables<Bfloat16>& tables, std::size_t c, Bfloat16* out,
                               std::ptrdiff_t length) {
    const ByteTable byte0 = avx512::load_table(tables.value_bytes[c][0].data());
    const ByteTable byte1 = avx512::load_table(tables.value_bytes[c][1].data());
    for (std::ptrdiff_t x = 0; x < length; x += 2 * kGroup) {
        // Packing and unpacking both work within 128-bit lanes, so the outputs end up in sequence.
        const __m512i levels = _mm512_packus_epi16(blend(rows, x), blend(rows, x + kGroup));
        const __m512i low = avx512::look_up(byte0, levels);
        const __m512i high = avx512::look_up(byte1, levels);
        Way::put(out + x, _mm512_unpacklo_epi8(low, high));
        if (x + kGroup < length) Way::put(out + x + kGroup, _mm512_unpackhi_epi8(low, high));
    }
}

// Copies whole cache lines past the caches where that is asked for and `out` lies on one.
GLIOFED_AVX512 void copy(const std::uint8_t* staged, std::uint8_t* out, std::size_t num_bytes, bool stream) {
    std::size_t done = 0;
    if (stream && reinterpret_cast<std::uintptr_t>(out) % 64 == 0) {
        for (; done + 64 <= num_bytes; done += 64) {
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out + done), _mm512_load_si512(staged + done));
        }
    }
    std::memcpy(out + done, staged + done, num_bytes - done);
}

// Rows that end within a group or a cache line wait here until they fill whole cache lines.
template <class T>
class StagedRows {
  public:
    StagedRows(ColourBuffers& buffers, T* out, std::ptrdiff_t side)
        : out_(out), side_(side), per_flush_(kPerLine / std::gcd(side, kPerLine)), stream_(buffers.stream) {
        plane_stride_ = per_flush_ * side + 2 * kGroup;
        plane_stride_ += -plane_stride_ & (kPerLine - 1);
        memory_ = buffers.staged.at_least(static_cast<std::size_t>(3 * plane_stride_) * sizeof(T));
    }

    // Where row y of plane c is to be written; up to a group beyond its end may be.
    T* row(std::ptrdiff_t c, std::ptrdiff_t y) {
        return reinterpret_cast<T*>(memory_) + c * plane_stride_ + y % per_flush_ * side_;
    }

    // To be called when row y of all planes is written.
    void flush_after(std::ptrdiff_t y) {
        const std::ptrdiff_t num_rows = y % per_flush_ + 1;
        if (num_rows < per_flush_ && y + 1 < side_) return;
        for (std::ptrdiff_t c = 0; c < 3; ++c) {
            T* to = out_ + (c * side_ + y + 1 - num_rows) * side_;
            copy(reinterpret_cast<const std::uint8_t*>(row(c, 0)), reinterpret_cast<std::uint8_t*>(to),
                 static_cast<std::size_t>(num_rows * side_) * sizeof(T), stream_);
        }
    }

  private:
    static constexpr std::ptrdiff_t kPerLine = 64 / sizeof(T);
    T* out_;
    std::ptrdiff_t side_;
    std::ptrdiff_t per_flush_;
    bool stream_;
    std::ptrdiff_t plane_stride_;
    std::uint8_t* memory_;
};

// Rows of whole groups go straight where they belong.
template <class T>
class DirectRows {
  public:
    DirectRows(T* out, std::ptrdiff_t side) : out_(out), side_(side) {}
    T* row(std::ptrdiff_t c, std::ptrdiff_t y) { return out_ + (c * side_ + y) * side_; }
    void flush_after(std::ptrdiff_t) {}

  private:
    T* out_;
    std::ptrdiff_t side_;
};

// One image of source_side x source_side levels, and what it is turned into.
template <class T>
struct Task {
    const std::uint8_t* gray;
    std::ptrdiff_t source_side;
    const LevelTables<T>& tables;
    std::ptrdiff_t side;
};

// BONE channels of source row y along x, each kept until the next but one: two neighbouring rows never collide.
template <class T>
struct SourceRows {
    std::uint8_t* mapped;
    std::ptrdiff_t mapped_stride;
    std::int16_t* rows;
    std::ptrdiff_t stride;
    std::array<std::int32_t, 2> held{-1, -1};

    SourceRows(const Task<T>& task, ColourBuffers& buffers)
        : mapped_stride((task.source_side + 63) / 64 * 64), stride((task.side + 63) / 64 * 64) {
        mapped = buffers.mapped.at_least(static_cast<std::size_t>(3 * mapped_stride + 64));
        rows = buffers.resize.rows.at_least(static_cast<std::size_t>(6 * stride));
    }

    std::int16_t* channel(std::int32_t y, std::ptrdiff_t c) { return rows + (3 * (y % 2) + c) * stride; }

    template <std::ptrdiff_t kWindow>
    GLIOFED_AVX512_INLINE void prepare(std::int32_t y, const Task<T>& task, const RowPlan& plan) {
        std::int32_t& in_slot = held[static_cast<std::size_t>(y % 2)];
        if (in_slot == y) return;
        in_slot = y;
        map_row(task.gray + y * task.source_side, task.source_side, task.tables, mapped, mapped_stride);
        avx512::resize_three_rows<kWindow>(mapped, mapped_stride, plan, channel(y, 0), stride);
    }
};

template <std::ptrdiff_t kWindow, class Way, class T, class Rows>
GLIOFED_AVX512 void colour_rows(const Task<T>& task, ColourBuffers& buffers, Rows outputs) {
    const LinearAxis& y_axis = buffers.resize.y_axis;
    SourceRows<T> sources(task, buffers);
    for (std::ptrdiff_t y = 0; y < task.side; ++y) {
        const auto k = static_cast<std::size_t>(y);
        const std::int32_t lower = y_axis.index_lower[k];
        const std::int32_t upper = y_axis.index_upper[k];
        sources.template prepare<kWindow>(lower, task, buffers.resize.plan);
        sources.template prepare<kWindow>(upper, task, buffers.resize.plan);
        for (std::ptrdiff_t c = 0; c < 3; ++c) {
            const RowPair pair{sources.channel(lower, c), sources.channel(upper, c), y_axis.weight_lower[k],
                               y_axis.weight_upper[k]};
            finish_row<Way>(pair, task.tables, static_cast<std::size_t>(c), outputs.row(c, y), task.side);
        }
        outputs.flush_after(y);
    }
}

}  // namespace

template <class T>
void colour_avx512(const std::uint8_t* gray, std::ptrdiff_t source_side, const LevelTables<T>& tables, T* out,
                   std::ptrdiff_t side, ColourBuffers& buffers) {
    ResizeBuffers& resize = buffers.resize;
    if (resize.x_axis.fit(source_side, side, EdgeRule::kClampWeight)) avx512::plan_row(resize.x_axis, resize.plan);
    resize.y_axis.fit(source_side, side, EdgeRule::kClampIndex);
    const Task<T> task{gray, source_side, tables, side};
    const bool whole_lines = reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
    if (resize.plan.window == 0) {
        colour_scalar(gray, source_side, tables, out, side, buffers);
    } else if (resize.plan.window == 128) {
        colour_rows<128, Store>(task, buffers, StagedRows<T>(buffers, out, side));
    } else if (side % kGroup != 0) {
        colour_rows<64, Store>(task, buffers, StagedRows<T>(buffers, out, side));
    } else if (buffers.stream && whole_lines) {
        colour_rows<64, Stream>(task, buffers, DirectRows<T>(out, side));
    } else {
        colour_rows<64, Store>(task, buffers, DirectRows<T>(out, side));
    }
    if (buffers.stream) _mm_sfence();  // other threads may read `out` once this one says that it is done
}

template void colour_avx512(const std::uint8_t*, std::ptrdiff_t, const LevelTables<float>&, float*, std::ptrdiff_t,
                            ColourBuffers&);
template void colour_avx512(const std::uint8_t*, std::ptrdiff_t, const LevelTables<Bfloat16>&, Bfloat16*,
                            std::ptrdiff_t, ColourBuffers&);

}  // namespace gliofed
