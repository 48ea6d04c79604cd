#pragma once
// Op `colour`: BONE colour map, bilinear resize in 8 bits, normalisation to planes of floating point numbers.

#include <array>
#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "resize.h"

namespace gliofed {

// The upper half of a float32's bits, rounded to nearest, ties to even.
enum class Bfloat16 : std::uint16_t {};

// Plane c of the output is (level * scale - mean[c]) / stddev[c], with level from BONE channel channel[c]
// (0 blue, 1 green, 2 red).
struct Normalisation {
    std::array<int, 3> channel;
    float scale;
    std::array<float, 3> mean;
    std::array<float, 3> stddev;
};

// The same; throws std::invalid_argument for channels that do not exist and deviations that are not positive.
Normalisation checked(const Normalisation& normalisation);

inline constexpr std::ptrdiff_t kMaxOutputSide = 2048;

// The normalisation of all 256 levels of each plane, worked out once: whatever the twin, the output is one of
// these values, so twins cannot differ in its last bit. T is float or Bfloat16.
//   value[c][level] = gain[c] * level + offset[c], rounded once (a fused multiply-add), then to T
// with gain = scale / stddev and offset = -mean / stddev rounded to float32: within two units in the last place of
// subtracting and dividing step by step, and one instruction where that takes a slow division.
template <class T>
struct LevelTables {
    std::array<float, 3> gain;
    std::array<float, 3> offset;
    alignas(64) std::array<std::array<std::uint8_t, 256>, 3> bone;
    alignas(64) std::array<std::array<T, 256>, 3> value;
    // Lower and upper byte of every value, for look-ups byte by byte; of bfloat16 only.
    alignas(64) std::array<std::array<std::array<std::uint8_t, 256>, sizeof(T) == 2 ? 2 : 0>, 3> value_bytes;

    explicit LevelTables(const Normalisation& normalisation);
};

struct ColourBuffers {
    ResizeBuffers resize;
    AlignedBuffer<std::uint8_t> mapped;
    AlignedBuffer<std::uint8_t> levels;
    AlignedBuffer<std::uint8_t> staged;
    // The batch's output is larger than the caches: a twin may then write past them, which spares reading each
    // line before it is overwritten and leaves the caches to the inputs.
    bool stream = false;
};

// `gray` is source_side x source_side, `out` 3 x side x side; both contiguous.
template <class T>
void colour_scalar(const std::uint8_t* gray, std::ptrdiff_t source_side, const LevelTables<T>& tables, T* out,
                   std::ptrdiff_t side, ColourBuffers& buffers);
template <class T>
void colour_avx2(const std::uint8_t* gray, std::ptrdiff_t source_side, const LevelTables<T>& tables, T* out,
                 std::ptrdiff_t side, ColourBuffers& buffers);
template <class T>
void colour_avx512(const std::uint8_t* gray, std::ptrdiff_t source_side, const LevelTables<T>& tables, T* out,
                   std::ptrdiff_t side, ColourBuffers& buffers);

}  // namespace gliofed
