// The Python face of the CUDA twin. Addresses are plain integers: asking for arrays would make DLPack wait on
// streams. kernels.cuda checks them and allocates.

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "device.h"
#include "launch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using gliofed::cuda::DeviceBox;
using gliofed::cuda::Stream;

// Address of the first pixel, height, width, bytes from row to row, channels.
using Image = std::tuple<std::uintptr_t, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, int>;

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

std::vector<gliofed::ImageView> views_of(const std::vector<Image>& images, bool bgr) {
    const auto order = bgr ? gliofed::ChannelOrder::kBgr : gliofed::ChannelOrder::kRgb;
    std::vector<gliofed::ImageView> views;
    for (const auto& [address, height, width, row_stride, channels] : images) {
        views.push_back({pointer<const std::uint8_t>(address), height, width, row_stride, channels, order});
    }
    return views;
}

std::size_t workspace_bytes(const std::vector<Image>& images) {
    return gliofed::cuda::workspace_bytes(views_of(images, true));
}

void crop(const std::vector<Image>& images, bool bgr, std::uintptr_t crops, std::uintptr_t boxes,
          std::uintptr_t workspace, int device, std::uintptr_t stream) {
    const gliofed::cuda::CurrentDevice current(device);
    gliofed::cuda::crop_batch(views_of(images, bgr), pointer<std::uint8_t>(crops), pointer<DeviceBox>(boxes),
                              pointer<void>(workspace), reinterpret_cast<Stream>(stream));
}

void denoise(std::uintptr_t crops, std::size_t num_images, std::uintptr_t smooth, int device, std::uintptr_t stream) {
    const gliofed::cuda::CurrentDevice current(device);
    gliofed::cuda::denoise_batch(pointer<const std::uint8_t>(crops), num_images, pointer<std::uint8_t>(smooth),
                                 reinterpret_cast<Stream>(stream));
}

// Of smooth crops, or of crops, which are denoised on the way.
template <class T, bool kSmooth>
void finish(std::uintptr_t crops, std::size_t num_images, std::uintptr_t out, std::ptrdiff_t side,
            std::array<int, 3> channel, float scale, std::array<float, 3> mean, std::array<float, 3> stddev,
            int device, std::uintptr_t stream) {
    const gliofed::cuda::CurrentDevice current(device);
    const auto run = kSmooth ? gliofed::cuda::colour_batch<T> : gliofed::cuda::finish_batch<T>;
    run(pointer<const std::uint8_t>(crops), num_images, gliofed::checked({channel, scale, mean, stddev}),
        pointer<T>(out), side, reinterpret_cast<Stream>(stream));
}

template <class T>
void preprocess(const std::vector<Image>& images, bool bgr, std::uintptr_t out, std::uintptr_t boxes,
                std::ptrdiff_t side, std::uintptr_t workspace, std::array<int, 3> channel, float scale,
                std::array<float, 3> mean, std::array<float, 3> stddev, int device, std::uintptr_t stream) {
    const gliofed::cuda::CurrentDevice current(device);
    gliofed::cuda::preprocess_batch(views_of(images, bgr), gliofed::checked({channel, scale, mean, stddev}),
                                    pointer<T>(out), pointer<DeviceBox>(boxes), side, pointer<void>(workspace),
                                    reinterpret_cast<Stream>(stream));
}

template <class T>
void bind_outputs(nb::module_& m, const std::string& dtype) {
    const auto bind_finish = [&](const std::string& name, auto* function) {
        m.def((name + dtype).c_str(), function, "crops"_a, "num_images"_a, "out"_a, "side"_a, nb::kw_only(),
              "channel"_a, "scale"_a, "mean"_a, "stddev"_a, "device"_a, "stream"_a);
    };
    bind_finish("color_", &finish<T, true>);
    bind_finish("finish_", &finish<T, false>);
    m.def(("preprocess_" + dtype).c_str(), &preprocess<T>, "images"_a, "bgr"_a, "out"_a, "boxes"_a, "side"_a,
          "workspace"_a, nb::kw_only(), "channel"_a, "scale"_a, "mean"_a, "stddev"_a, "device"_a, "stream"_a);
}

}  // namespace

NB_MODULE(_cuda, m) {
    m.doc() = "Preprocessing on an NVIDIA GPU; use it through kernels.cuda, which checks, allocates and explains.";
    m.def("reason_unavailable", &gliofed::cuda::reason_unavailable);
    m.def("workspace_bytes", &workspace_bytes, "images"_a);
    m.def("crop", &crop, "images"_a, "bgr"_a, "crops"_a, "boxes"_a, "workspace"_a, nb::kw_only(), "device"_a,
          "stream"_a);
    m.def("denoise", &denoise, "crops"_a, "num_images"_a, "smooth"_a, nb::kw_only(), "device"_a, "stream"_a);
    bind_outputs<float>(m, "float32");
    bind_outputs<gliofed::Bfloat16>(m, "bfloat16");
}
