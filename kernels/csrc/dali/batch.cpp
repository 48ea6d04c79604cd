#include "batch.h"

#include <algorithm>
#include <array>
#include <string>

#include "pipeline.h"

namespace gliofed::plugin {

using ::dali::make_string;

namespace {

using Shape = ::dali::span<const std::int64_t>;

std::string text_of(Shape shape) {
    std::string text;
    for (const std::int64_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
    return "[" + text + "]";
}

bool is_image(Shape shape) {
    if (shape.size() != 2 && shape.size() != 3) return false;
    if (shape.size() == 3 && shape[2] != 1 && shape[2] != 3) return false;
    return is_allowed_size(shape[0], shape[1]);
}

bool is_crop(Shape shape) { return shape.size() == 2 && shape[0] == kCropSide && shape[1] == kCropSide; }

void require(const ::dali::Workspace& ws, bool (*fits)(Shape), const char* expected) {
    DALI_ENFORCE(ws.GetInputDataType(0) == ::DALI_UINT8,
                 make_string("input has elements of type ", ws.GetInputDataType(0), ", expected ", expected));
    const auto shape = ws.GetInputShape(0);
    for (int i = 0; i < shape.num_samples(); ++i) {
        const auto sample = shape.tensor_shape_span(i);
        DALI_ENFORCE(fits(sample), make_string("sample #", i, " is ", text_of(sample), ", expected ", expected));
    }
}

void require_images(const ::dali::Workspace& ws) {
    require(ws, is_image, "uint8 [H, W], [H, W, 1] or [H, W, 3], sides of 1 to 2^20 and at most 2^30 pixels");
}

std::array<float, 3> triple_of(const ::dali::OpSpec& spec, const char* name) {
    const auto values = spec.GetRepeatedArgument<float>(name);
    DALI_ENFORCE(values.size() == 3, make_string(name, " has ", values.size(), " numbers, expected 3"));
    return {values[0], values[1], values[2]};
}

}  // namespace

void describe_gray(const ::dali::Workspace& ws, Outputs& outputs) {
    require_images(ws);
    const auto images = ws.GetInputShape(0);
    ::dali::TensorListShape<> planes(images.num_samples(), 2);
    for (int i = 0; i < images.num_samples(); ++i) {
        const auto image = images.tensor_shape_span(i);
        planes.set_tensor_shape(i, ::dali::TensorShape<2>{image[0], image[1]});
    }
    outputs = {{planes, ::DALI_UINT8}};
}

void describe_crop(const ::dali::Workspace& ws, Outputs& outputs) {
    require_images(ws);
    const int count = ws.GetInputBatchSize(0);
    outputs = {{::dali::uniform_list_shape(count, ::dali::TensorShape<>{kCropSide, kCropSide}), ::DALI_UINT8},
               {::dali::uniform_list_shape(count, ::dali::TensorShape<>{4}), ::DALI_INT32}};
}

void describe_finish(const ::dali::Workspace& ws, std::int64_t size, Outputs& outputs) {
    require(ws, is_crop, "uint8 [256, 256], as fn.gliofed.crop makes them");
    const int count = ws.GetInputBatchSize(0);
    outputs = {{::dali::uniform_list_shape(count, ::dali::TensorShape<>{3, size, size}), ::DALI_FLOAT}};
}

std::int64_t size_of(const ::dali::OpSpec& spec) {
    const auto size = spec.GetArgument<int>("size");
    DALI_ENFORCE(size >= 1 && size <= kMaxOutputSide,
                 make_string("size is ", size, ", expected 1 to ", kMaxOutputSide));
    return size;
}

Normalisation normalisation_of(const ::dali::OpSpec& spec) {
    const auto channel = spec.GetRepeatedArgument<int>("channel");
    const bool is_channel = std::all_of(channel.begin(), channel.end(), [](int c) { return c >= 0 && c <= 2; });
    DALI_ENFORCE(channel.size() == 3 && is_channel, "channel must be three numbers of 0 to 2");
    const auto stddev = triple_of(spec, "stddev");
    DALI_ENFORCE(std::all_of(stddev.begin(), stddev.end(), [](float s) { return s > 0.0F; }),
                 "stddev must be three positive numbers");
    return {{channel[0], channel[1], channel[2]}, spec.GetArgument<float>("scale"), triple_of(spec, "mean"), stddev};
}

}  // namespace gliofed::plugin
