#include "colour.h"

#include <bit>
#include <cmath>
#include <stdexcept>

#include "bone_table.h"

namespace gliofed {
namespace {

template <class T>
T convert(float value);

template <>
float convert<float>(float value) {
    return value;
}

template <>
Bfloat16 convert<Bfloat16>(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<Bfloat16>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace

Normalisation checked(const Normalisation& normalisation) {
    for (std::size_t c = 0; c < 3; ++c) {
        if (normalisation.channel[c] < 0 || normalisation.channel[c] > 2) {
            throw std::invalid_argument("channel numbers must be 0, 1 or 2");
        }
        if (!(normalisation.stddev[c] > 0.0F)) throw std::invalid_argument("standard deviations must be positive");
    }
    return normalisation;
}

template <class T>
LevelTables<T>::LevelTables(const Normalisation& normalisation) {
    for (std::size_t c = 0; c < 3; ++c) {
        const double stddev = normalisation.stddev[c];
        gain[c] = static_cast<float>(normalisation.scale / stddev);
        offset[c] = static_cast<float>(-normalisation.mean[c] / stddev);
        for (std::size_t level = 0; level < 256; ++level) {
            bone[c][level] = kBoneBgr[level][static_cast<std::size_t>(normalisation.channel[c])];
            value[c][level] = convert<T>(std::fma(gain[c], static_cast<float>(level), offset[c]));
            if constexpr (sizeof(T) == 2) {
                const auto bits = static_cast<std::uint16_t>(value[c][level]);
                value_bytes[c][0][level] = static_cast<std::uint8_t>(bits & 0xFF);
                value_bytes[c][1][level] = static_cast<std::uint8_t>(bits >> 8);
            }
        }
    }
}

template <class T>
void colour_scalar(const std::uint8_t* gray, std::ptrdiff_t source_side, const LevelTables<T>& tables, T* out,
                   std::ptrdiff_t side, ColourBuffers& buffers) {
    const std::ptrdiff_t num_source = source_side * source_side;
    const std::ptrdiff_t num_out = side * side;
    std::uint8_t* mapped = buffers.mapped.at_least(static_cast<std::size_t>(num_source));
    std::uint8_t* levels = buffers.levels.at_least(static_cast<std::size_t>(num_out));
    for (std::size_t c = 0; c < 3; ++c) {
        for (std::ptrdiff_t i = 0; i < num_source; ++i) mapped[i] = tables.bone[c][gray[i]];
        resize_scalar({mapped, source_side, source_side, source_side}, levels, side, side, buffers.resize);
        for (std::ptrdiff_t i = 0; i < num_out; ++i) *out++ = tables.value[c][levels[i]];
    }
}

template struct LevelTables<float>;
template struct LevelTables<Bfloat16>;
template void colour_scalar(const std::uint8_t*, std::ptrdiff_t, const LevelTables<float>&, float*, std::ptrdiff_t,
                            ColourBuffers&);
template void colour_scalar(const std::uint8_t*, std::ptrdiff_t, const LevelTables<Bfloat16>&, Bfloat16*,
                            std::ptrdiff_t, ColourBuffers&);

}  // namespace gliofed
