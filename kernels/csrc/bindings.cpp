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
#include "dispatch.h"
#include "pipeline.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Image = nb::ndarray<const std::uint8_t, nb::device::cpu>;
using Gray = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using Level = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::device::cpu, nb::c_contig>;
using Crops = nb::ndarray<const std::uint8_t, nb::shape<-1, 256, 256>, nb::device::cpu, nb::c_contig>;
using CropsOut = nb::ndarray<std::uint8_t, nb::shape<-1, 256, 256>, nb::device::cpu, nb::c_contig>;
template <class T>
using Planes = nb::ndarray<T, nb::shape<-1, 3, -1, -1>, nb::device::cpu, nb::c_contig>;
using Flags = nb::ndarray<bool, nb::ndim<1>, nb::device::cpu, nb::c_contig>;
using Corners = std::tuple<std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t>;

constexpr auto kMaxOutputSide = static_cast<std::size_t>(gliofed::kMaxOutputSide);
constexpr int kMaxThreads = 256;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void require_size(std::ptrdiff_t height, std::ptrdiff_t width) {
    if (!gliofed::is_allowed_size(height, width)) {
        refuse("image is " + std::to_string(height) + "x" + std::to_string(width) +
               ", expected sides of 1 to 2^20 and at most 2^30 pixels");
    }
}

gliofed::GrayView view_of(const Gray& gray) {
    const auto height = static_cast<std::ptrdiff_t>(gray.shape(0));
    const auto width = static_cast<std::ptrdiff_t>(gray.shape(1));
    require_size(height, width);
    if (width > 1 && gray.stride(1) != 1) refuse("the pixels of an image row must be adjacent in memory");
    return {gray.data(), height, width, gray.stride(0)};
}

gliofed::ImageView view_of(const Image& image, gliofed::ChannelOrder order) {
    if (image.ndim() != 2 && (image.ndim() != 3 || image.shape(2) != 3)) {
        refuse("image must be grey [H, W] or colour [H, W, 3]");
    }
    const int channels = image.ndim() == 2 ? 1 : 3;
    const auto height = static_cast<std::ptrdiff_t>(image.shape(0));
    const auto width = static_cast<std::ptrdiff_t>(image.shape(1));
    require_size(height, width);
    const bool adjacent = (width == 1 || image.stride(1) == channels) && (channels == 1 || image.stride(2) == 1);
    if (!adjacent) refuse("the pixels of an image row must be adjacent in memory");
    return {image.data(), height, width, image.stride(0), channels, order};
}

std::vector<gliofed::ImageView> views_of(const std::vector<Image>& images, bool bgr) {
    const auto order = bgr ? gliofed::ChannelOrder::kBgr : gliofed::ChannelOrder::kRgb;
    std::vector<gliofed::ImageView> views;
    for (const Image& image : images) views.push_back(view_of(image, order));
    return views;
}

void require_threads(int num_threads) {
    if (num_threads < 1 || num_threads > kMaxThreads) {
        refuse("num_threads is " + std::to_string(num_threads) + ", expected 1 to " + std::to_string(kMaxThreads));
    }
}

void require_room(const CropsOut& out, std::size_t num_crops) {
    if (out.shape(0) == num_crops) return;
    refuse("output has room for " + std::to_string(out.shape(0)) + " crops, expected one for each of " +
           std::to_string(num_crops) + " images");
}

template <class T>
std::ptrdiff_t require_planes(const Planes<T>& out, std::size_t num_images) {
    if (out.shape(0) != num_images || out.shape(2) != out.shape(3) || out.shape(2) < 1 ||
        out.shape(2) > kMaxOutputSide) {
        refuse("output is [" + std::to_string(out.shape(0)) + ", 3, " + std::to_string(out.shape(2)) + ", " +
               std::to_string(out.shape(3)) + "], expected [" + std::to_string(num_images) +
               ", 3, S, S] with S of 1 to " + std::to_string(kMaxOutputSide));
    }
    return static_cast<std::ptrdiff_t>(out.shape(2));
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
    return corners(gliofed::ops().contour(bits, buffers));
}

void resize(const Gray& gray, const Level& out) {
    const gliofed::GrayView view = view_of(gray);
    if (out.shape(0) < 1 || out.shape(1) < 1 || out.shape(0) > kMaxOutputSide || out.shape(1) > kMaxOutputSide) {
        refuse("resized sides must be 1 to " + std::to_string(kMaxOutputSide));
    }
    const nb::gil_scoped_release unlocked;
    gliofed::ResizeBuffers buffers;
    gliofed::ops().resize(view, out.data(), static_cast<std::ptrdiff_t>(out.shape(0)),
                          static_cast<std::ptrdiff_t>(out.shape(1)), buffers);
}

void denoise(const Crops& crops, const CropsOut& out, int num_threads) {
    require_room(out, crops.shape(0));
    require_threads(num_threads);
    if (crops.data() == out.data()) refuse("the output must not be the input itself");
    const nb::gil_scoped_release unlocked;
    gliofed::denoise_batch(crops.data(), crops.shape(0), out.data(), num_threads);
}

void gray(const Image& image, const Level& out, bool bgr) {
    const gliofed::ImageView view = views_of({image}, bgr).front();
    if (view.channels != 3) refuse("image must be colour [H, W, 3]");
    if (out.shape(0) != image.shape(0) || out.shape(1) != image.shape(1)) refuse("out must have the image's sides");
    const nb::gil_scoped_release unlocked;
    gliofed::ops().gray(view, out.data());
}

std::vector<std::optional<Corners>> crop(const std::vector<Image>& images, const CropsOut& out, bool bgr,
                                         int num_threads) {
    require_room(out, images.size());
    require_threads(num_threads);
    const std::vector<gliofed::ImageView> views = views_of(images, bgr);
    std::vector<std::optional<gliofed::Box>> boxes(views.size());
    {
        const nb::gil_scoped_release unlocked;
        gliofed::crop_batch(views, out.data(), boxes, num_threads);
    }
    std::vector<std::optional<Corners>> result;
    for (const auto& box : boxes) result.push_back(corners(box));
    return result;
}

// Steps 3 to 5, or only 4 and 5: `run` says which.
template <class T, class Stored, auto run>
void to_planes(const Crops& crops, const Planes<Stored>& out, std::array<int, 3> channel, float scale,
               std::array<float, 3> mean, std::array<float, 3> stddev, int num_threads) {
    const std::ptrdiff_t side = require_planes(out, crops.shape(0));
    require_threads(num_threads);
    const gliofed::Normalisation normalisation = gliofed::checked({channel, scale, mean, stddev});
    const nb::gil_scoped_release unlocked;
    run(crops.data(), crops.shape(0), normalisation, reinterpret_cast<T*>(out.data()), side, num_threads);
}

template <class T, class Stored>
void preprocess(const std::vector<Image>& images, const Planes<Stored>& out, const Flags& found, bool bgr,
                std::array<int, 3> channel, float scale, std::array<float, 3> mean, std::array<float, 3> stddev,
                int num_threads) {
    const std::ptrdiff_t side = require_planes(out, images.size());
    if (found.shape(0) != images.size()) refuse("found must have one flag for each image");
    require_threads(num_threads);
    const gliofed::Normalisation normalisation = gliofed::checked({channel, scale, mean, stddev});
    const std::vector<gliofed::ImageView> views = views_of(images, bgr);
    const nb::gil_scoped_release unlocked;
    gliofed::preprocess_batch(views, normalisation, reinterpret_cast<T*>(out.data()), found.data(), side,
                              num_threads);
}

const gliofed::Ops& named(const std::string& name) {
    for (const gliofed::Ops& ops : gliofed::all_ops()) {
        if (ops.name == name) return ops;
    }
    refuse("isa is '" + name + "', expected scalar, avx2 or avx512");
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const gliofed::Ops& ops : gliofed::all_ops()) {
        if (gliofed::supported(ops.isa)) names.emplace_back(ops.name);
    }
    return names;
}

nb::bytes bone_table() { return nb::bytes(gliofed::kBoneBgr.data(), sizeof gliofed::kBoneBgr); }

template <class T, class Stored>
void bind_outputs(nb::module_& m) {
    m.def("finish", &to_planes<T, Stored, &gliofed::finish_batch<T>>, nb::arg("crops").noconvert(),
          nb::arg("out").noconvert(), "channel"_a, "scale"_a, "mean"_a, "stddev"_a, "num_threads"_a);
    m.def("color", &to_planes<T, Stored, &gliofed::colour_batch<T>>, nb::arg("crops").noconvert(),
          nb::arg("out").noconvert(), "channel"_a, "scale"_a, "mean"_a, "stddev"_a, "num_threads"_a);
    m.def("preprocess", &preprocess<T, Stored>, nb::arg("images").noconvert(), nb::arg("out").noconvert(),
          nb::arg("found").noconvert(), "bgr"_a, "channel"_a, "scale"_a, "mean"_a, "stddev"_a, "num_threads"_a);
}

}  // namespace

NB_MODULE(_C, m) {
    m.doc() = "Compiled preprocessing; use it through kernels.ops, which allocates and explains.";
    m.attr("MAX_SIDE") = gliofed::kMaxSide;
    m.attr("MAX_PIXELS") = gliofed::kMaxPixels;
    m.attr("MAX_THREADS") = kMaxThreads;
    m.def("bone_table", &bone_table);
    m.def("largest_contour", &largest_contour, nb::arg("mask").noconvert());
    m.def("resize", &resize, nb::arg("gray").noconvert(), nb::arg("out").noconvert());
    m.def("denoise", &denoise, nb::arg("crops").noconvert(), nb::arg("out").noconvert(), "num_threads"_a);
    m.def("gray", &gray, nb::arg("image").noconvert(), nb::arg("out").noconvert(), "bgr"_a);
    m.def("crop", &crop, nb::arg("images").noconvert(), nb::arg("out").noconvert(), "bgr"_a, "num_threads"_a);
    // The overload is chosen by the output's dtype; uint16 holds the bits of bfloat16, which NumPy does not know.
    bind_outputs<float, float>(m);
    bind_outputs<gliofed::Bfloat16, std::uint16_t>(m);
    m.def("isas", &isas);
    m.def("isa", [] { return std::string(gliofed::ops().name); });
    m.def("use_isa", [](const std::string& name) { gliofed::use_isa(named(name).isa); }, "name"_a);
}
