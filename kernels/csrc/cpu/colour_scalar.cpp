#include "colour.h"

#include <cstddef>

#include "bone_table.h"

namespace gliofed {

void colour_scalar(const std::uint8_t* gray, std::ptrdiff_t source_side, const Normalisation& normalisation,
                   float* out, std::ptrdiff_t side, ColourBuffers& buffers) {
    const std::ptrdiff_t num_source = source_side * source_side;
    const std::ptrdiff_t num_out = side * side;
    buffers.mapped.resize(static_cast<std::size_t>(num_source));
    buffers.levels.resize(static_cast<std::size_t>(num_out));
    const GrayView mapped{buffers.mapped.data(), source_side, source_side, source_side};
    for (std::size_t c = 0; c < 3; ++c) {
        const auto channel = static_cast<std::size_t>(normalisation.channel[c]);
        std::array<std::uint8_t, 256> table{};
        for (std::size_t level = 0; level < 256; ++level) table[level] = kBoneBgr[level][channel];
        for (std::ptrdiff_t i = 0; i < num_source; ++i) buffers.mapped[static_cast<std::size_t>(i)] = table[gray[i]];
        resize_scalar(mapped, buffers.levels.data(), side, side, buffers.resize);
        // Not folded into one multiply-add: the division keeps float32 equal to NumPy's.
        const float scale = normalisation.scale;
        const float mean = normalisation.mean[c];
        const float stddev = normalisation.stddev[c];
        const std::uint8_t* levels = buffers.levels.data();
        float* plane = out + static_cast<std::ptrdiff_t>(c) * num_out;
        for (std::ptrdiff_t i = 0; i < num_out; ++i) {
            plane[i] = (static_cast<float>(levels[i]) * scale - mean) / stddev;
        }
    }
}

}  // namespace gliofed
