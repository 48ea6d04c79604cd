// Python faces of the core: checks once, lets go of the interpreter lock, calls plain C++.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "bone_table.h"
#include "pipeline.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Gray = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using Level = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::device::cpu, nb::c_contig>;
using Crops = nb::ndarray<const std::uint8_t, nb::shape<-1, 256, 256>, nb::device::cpu, nb::c_contig>;
using Planes = nb::ndarray<float, nb::shape<-1, 3, -1, -1>, nb::device::cpu, nb::c_contig>;
using Flags = nb::ndarray<bool, nb::ndim<1>, nb::device::cpu, nb::c_contig>;
using Corners = std::tuple<std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t>;

constexpr std::size_t kMaxOutputSide = 2048;
constexpr int kMaxThreads = 256;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

gliofed::GrayView view_of(const Gray& gray) {
    const auto height = static_cast<std::ptrdiff_t>(gray.shape(0));
    const auto width = static_cast<std::ptrdiff_t>(gray.shape(1));
    if (height < 1 || width < 1 || height > gliofed::kMaxSide || width > gliofed::kMaxSide ||
        height * width > gliofed::kMaxPixels) {
        refuse("image is " + std::to_string(height) + "x" + std::to_string(width) +
               ", expected sides of 1 to 2^20 and at most 2^30 pixels");
    }
    if (width > 1 && gray.stride(1) != 1) refuse("the pixels of an image row must be adjacent in memory");
    return {gray.data(), height, width, gray.stride(0)};
}

void require_threads(int num_threads) {
    if (num_threads < 1 || num_threads > kMaxThreads) {
        refuse("num_threads is " + std::to_string(num_threads) + ", expected 1 to " + std::to_string(kMaxThreads));
    }
}

std::ptrdiff_t require_planes(const Planes& out, std::size_t num_images) {
    if (out.shape(0) != num_images || out.shape(2) != out.shape(3) || out.shape(2) < 1 ||
        out.shape(2) > kMaxOutputSide) {
        refuse("output is [" + std::to_string(out.shape(0)) + ", 3, " + std::to_string(out.shape(2)) + ", " +
               std::to_string(out.shape(3)) + "], expected [" + std::to_string(num_images) +
               ", 3, S, S] with S of 1 to " + std::to_string(kMaxOutputSide));
    }
    return static_cast<std::ptrdiff_t>(out.shape(2));
}

gliofed::Normalisation normalisation_of(std::array<int, 3> channel, float scale, std::array<float, 3> mean,
                                        std::array<float, 3> stddev) {
    for (std::size_t c = 0; c < 3; ++c) {
        if (channel[c] < 0 || channel[c] > 2) refuse("channel numbers must be 0, 1 or 2");
        if (!(stddev[c] > 0.0F)) refuse("standard deviations must be positive");
    }
    return {channel, scale, mean, stddev};
}

std::optional<Corners> corners(const std::optional<gliofed::Box>& box) {
    if (!box) return std::nullopt;
    return Corners{box->left, box->top, box->right, box->bottom};
}

std::optional<Corners> largest_contour(const Gray& mask) {
    const gliofed::GrayView view = view_of(mask);
    const nb::gil_scoped_release unlocked;
    gliofed::BitMask bits;
    bits.reshape(view.height, view.width);
    for (std::ptrdiff_t y = 0; y < view.height; ++y) {
        for (std::ptrdiff_t x = 0; x < view.width; ++x) {
            if (view.row(y)[x] != 0) bits.row(y)[x >> 6] |= std::uint64_t{1} << (x & 63);
        }
    }
    gliofed::ContourBuffers buffers;
    return corners(gliofed::largest_contour_scalar(bits, buffers));
}

void resize(const Gray& gray, const Level& out) {
    const gliofed::GrayView view = view_of(gray);
    if (out.shape(0) < 1 || out.shape(1) < 1 || out.shape(0) > kMaxOutputSide || out.shape(1) > kMaxOutputSide) {
        refuse("resized sides must be 1 to " + std::to_string(kMaxOutputSide));
    }
    const nb::gil_scoped_release unlocked;
    gliofed::ResizeBuffers buffers;
    gliofed::resize_scalar(view, out.data(), static_cast<std::ptrdiff_t>(out.shape(0)),
                           static_cast<std::ptrdiff_t>(out.shape(1)), buffers);
}

void require_crop(const Level& level, const char* name) {
    if (level.shape(0) != gliofed::kCropSide || level.shape(1) != gliofed::kCropSide) {
        refuse(std::string(name) + " must be 256x256");
    }
}

void denoise(const Gray& crop, const Level& out) {
    const gliofed::GrayView view = view_of(crop);
    require_crop(out, "out");
    if (view.height != gliofed::kCropSide || view.width != gliofed::kCropSide ||
        view.row_stride != gliofed::kCropSide || view.pixels == out.data()) {
        refuse("crop must be 256x256, contiguous, and not the output itself");
    }
    const nb::gil_scoped_release unlocked;
    gliofed::DenoiseBuffers buffers;
    gliofed::denoise_scalar(view.pixels, out.data(), gliofed::kCropSide, buffers);
}

std::optional<Corners> crop(const Gray& gray, const Level& out) {
    const gliofed::GrayView view = view_of(gray);
    require_crop(out, "out");
    const nb::gil_scoped_release unlocked;
    gliofed::Workspace workspace;
    return corners(gliofed::crop_image(view, out.data(), workspace));
}

void finish(const Crops& crops, const Planes& out, std::array<int, 3> channel, float scale, std::array<float, 3> mean,
            std::array<float, 3> stddev, int num_threads) {
    const std::ptrdiff_t side = require_planes(out, crops.shape(0));
    require_threads(num_threads);
    const gliofed::Normalisation normalisation = normalisation_of(channel, scale, mean, stddev);
    std::vector<const std::uint8_t*> pixels;
    for (std::size_t i = 0; i < crops.shape(0); ++i) pixels.push_back(crops.data() + i * gliofed::kCropPixels);
    const nb::gil_scoped_release unlocked;
    gliofed::finish_batch(pixels, normalisation, out.data(), side, num_threads);
}

void preprocess(const std::vector<Gray>& grays, const Planes& out, const Flags& found, std::array<int, 3> channel,
                float scale, std::array<float, 3> mean, std::array<float, 3> stddev, int num_threads) {
    const std::ptrdiff_t side = require_planes(out, grays.size());
    if (found.shape(0) != grays.size()) refuse("found must have one flag for each image");
    require_threads(num_threads);
    const gliofed::Normalisation normalisation = normalisation_of(channel, scale, mean, stddev);
    std::vector<gliofed::GrayView> views;
    for (const Gray& gray : grays) views.push_back(view_of(gray));
    const nb::gil_scoped_release unlocked;
    gliofed::preprocess_batch(views, normalisation, out.data(), found.data(), side, num_threads);
}

nb::bytes bone_table() { return nb::bytes(gliofed::kBoneBgr.data(), sizeof gliofed::kBoneBgr); }

}  // namespace

NB_MODULE(_C, m) {
    m.doc() = "Compiled preprocessing; use it through kernels.ops, which allocates and explains.";
    m.attr("MAX_SIDE") = gliofed::kMaxSide;
    m.attr("MAX_PIXELS") = gliofed::kMaxPixels;
    m.attr("MAX_OUTPUT_SIDE") = kMaxOutputSide;
    m.attr("MAX_THREADS") = kMaxThreads;
    m.def("bone_table", &bone_table);
    m.def("largest_contour", &largest_contour, nb::arg("mask").noconvert());
    m.def("resize", &resize, nb::arg("gray").noconvert(), nb::arg("out").noconvert());
    m.def("denoise", &denoise, nb::arg("crop").noconvert(), nb::arg("out").noconvert());
    m.def("crop", &crop, nb::arg("gray").noconvert(), nb::arg("out").noconvert());
    m.def("finish", &finish, nb::arg("crops").noconvert(), nb::arg("out").noconvert(), "channel"_a, "scale"_a,
          "mean"_a, "stddev"_a, "num_threads"_a);
    m.def("preprocess", &preprocess, nb::arg("grays").noconvert(), nb::arg("out").noconvert(),
          nb::arg("found").noconvert(), "channel"_a, "scale"_a, "mean"_a, "stddev"_a, "num_threads"_a);
}
