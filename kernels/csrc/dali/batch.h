#pragma once
// What the operators of both backends share: checks of their inputs, and the shapes of their outputs.

#include <cstdint>
#include <vector>

#include "colour.h"
#include "dali/pipeline/operator/operator.h"
#include "image.h"

namespace gliofed::plugin {

using Outputs = std::vector<::dali::OutputDesc>;

// Each checks input 0, then says which buffers DALI shall provide. Errors name the sample, what it is, and what was
// expected. Images are uint8 [H, W], [H, W, 1] or RGB [H, W, 3] within the core's limits.
void describe_gray(const ::dali::Workspace& ws, Outputs& outputs);
void describe_crop(const ::dali::Workspace& ws, Outputs& outputs);
void describe_finish(const ::dali::Workspace& ws, std::int64_t size, Outputs& outputs);

// One sample of an input that describe_gray or describe_crop let pass; DALI's decoders give colour as RGB.
template <class Backend>
ImageView view_of(const ::dali::TensorList<Backend>& images, int i) {
    const auto shape = images.tensor_shape_span(i);
    const int channels = shape.size() == 3 ? static_cast<int>(shape[2]) : 1;
    const auto* pixels = images.template tensor<std::uint8_t>(i);
    return {pixels, shape[0], shape[1], shape[1] * channels, channels, ChannelOrder::kRgb};
}

// Arguments of fn.gliofed.finish.
std::int64_t size_of(const ::dali::OpSpec& spec);
Normalisation normalisation_of(const ::dali::OpSpec& spec);

}  // namespace gliofed::plugin
