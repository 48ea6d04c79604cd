// Fuzz target: every twin must do, bit by bit, what the scalar code does, and the contour what a flood fill does.
// libFuzzer can drive it (clang++ -fsanitize=fuzzer); fuzz_main.cpp drives it where there is none.

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "picture.h"
#include "pipeline.h"
#include "slow_contour.h"

namespace gliofed::fuzz {
namespace {

constexpr std::ptrdiff_t kMostSlowPixels = 20'000;

// One a twin, kept from picture to picture within a case: what an earlier picture left must not show.
using Workspaces = std::array<Workspace, 3>;

[[noreturn]] void fail(const char* op, std::string_view twin, const char* what) {
    std::fprintf(stderr, "gliofed_fuzz: %s on %.*s: %s\n", op, static_cast<int>(twin.size()), twin.data(), what);
    std::abort();
}

void require_equal(const char* op, std::string_view twin, const Guarded& truth, const Guarded& ours) {
    const auto [at, other] = std::mismatch(truth.bytes(), truth.bytes() + truth.size(), ours.bytes());
    if (at == truth.bytes() + truth.size()) return;
    std::array<char, 96> what;
    std::snprintf(what.data(), what.size(), "byte %td of %zu is %u, expected %u", at - truth.bytes(), truth.size(),
                  static_cast<unsigned>(*other), static_cast<unsigned>(*at));
    fail(op, twin, what.data());
}

// Runs an op on the scalar code with new buffers, then on all twins with the case's own. Outputs begin as different
// rubbish, so that what an op leaves unwritten shows too.
template <class Op>
void compare(const char* name, std::size_t num_bytes, Choices& choices, Workspaces& workspaces, const Op& op) {
    const Flush flush = choices.yes() ? Flush::kLeft : Flush::kRight;
    const Guarded truth(num_bytes, flush, 0x5A);
    Workspace fresh;
    op(all_ops().front(), truth, fresh);
    for (std::size_t i = 0; i < all_ops().size(); ++i) {
        const Ops& twin = all_ops()[i];
        if (!supported(twin.isa)) continue;
        const Guarded ours(num_bytes, flush, 0xC3);
        op(twin, ours, workspaces[i]);
        require_equal(name, twin.name, truth, ours);
    }
}

std::size_t pixels_of(const ImageView& image) { return static_cast<std::size_t>(image.height * image.width); }

GrayView gray_of(const ImageView& image, const Guarded& gray) {
    if (image.channels == 1) return {image.pixels, image.height, image.width, image.row_stride};
    gray_scalar(image, gray.bytes());
    return {gray.bytes(), image.height, image.width, image.width};
}

std::array<std::ptrdiff_t, 4> corners(const std::optional<Box>& box) {
    return box ? std::array{box->left, box->top, box->right, box->bottom} : std::array<std::ptrdiff_t, 4>{-1};
}

void check_contour(const BitMask& mask, Workspaces& workspaces) {
    const bool small = mask.height * mask.width <= kMostSlowPixels;
    ContourBuffers fresh;
    const auto truth = corners(small ? SlowContour(mask).largest() : all_ops().front().contour(mask, fresh));
    for (std::size_t i = 0; i < all_ops().size(); ++i) {
        const Ops& twin = all_ops()[i];
        if (!supported(twin.isa)) continue;
        const auto ours = corners(twin.contour(mask, workspaces[i].contour));
        if (ours == truth) continue;
        std::array<char, 128> what;
        std::snprintf(what.data(), what.size(), "box %td %td %td %td, expected %td %td %td %td", ours[0], ours[1],
                      ours[2], ours[3], truth[0], truth[1], truth[2], truth[3]);
        fail("contour", twin.name, what.data());
    }
}

void check_contour_of_levels(const GrayView& image, Workspaces& workspaces) {
    BitMask mask;
    mask.reshape(image.height, image.width);
    for (std::ptrdiff_t y = 0; y < image.height; ++y) {
        for (std::ptrdiff_t x = 0; x < image.width; ++x) {
            if (image.row(y)[x] > kForegroundLevel) mask.row(y)[x >> 6] |= std::uint64_t{1} << (x & 63);
        }
    }
    check_contour(mask, workspaces);
}

void check_foreground(const GrayView& image, Choices& choices, Workspaces& workspaces) {
    const auto num_words = static_cast<std::size_t>(image.height * ((image.width + 63) / 64));
    const std::size_t num_bytes = num_words * sizeof(std::uint64_t);
    compare("foreground", num_bytes, choices, workspaces, [&](const Ops& twin, const Guarded& out, Workspace& own) {
        twin.foreground(image, own.mask, own.foreground);
        if (own.mask.words.size() != num_words) fail("foreground", twin.name, "mask of another size");
        std::memcpy(out.bytes(), own.mask.words.data(), num_bytes);
    });
    check_contour(workspaces.front().mask, workspaces);
}

void check_resize(const GrayView& image, Choices& choices, Workspaces& workspaces) {
    const bool halves = choices.below(8) == 0 && image.height % 2 == 0 && image.width % 2 == 0;
    const bool crops = choices.yes();
    const std::ptrdiff_t height = halves ? image.height / 2 : crops ? kCropSide : choices.side(300);
    const std::ptrdiff_t width = halves ? image.width / 2 : crops ? kCropSide : choices.side(300);
    compare("resize", static_cast<std::size_t>(height * width), choices, workspaces,
            [&](const Ops& twin, const Guarded& out, Workspace& own) {
                twin.resize(image, out.bytes(), height, width, own.resize);
            });
}

// A square of an image's pixels, repeated as often as needed.
void tile(const GrayView& image, std::uint8_t* out, std::ptrdiff_t side) {
    for (std::ptrdiff_t y = 0; y < side; ++y) {
        for (std::ptrdiff_t x = 0; x < side; ++x) *out++ = image.row(y % image.height)[x % image.width];
    }
}

void check_denoise(const GrayView& image, Choices& choices, Workspaces& workspaces) {
    const std::ptrdiff_t side = std::max<std::ptrdiff_t>(2, choices.side(300));
    const auto num_bytes = static_cast<std::size_t>(side * side);
    const Guarded square(num_bytes, choices.yes() ? Flush::kLeft : Flush::kRight, 0);
    tile(image, square.bytes(), side);
    compare("denoise", num_bytes, choices, workspaces, [&](const Ops& twin, const Guarded& out, Workspace& own) {
        twin.denoise(square.bytes(), out.bytes(), side, own.denoise);
    });
}

Normalisation make_normalisation(Choices& choices) {
    static constexpr std::array<float, 6> kNumbers{1.0F / 255.0F, 1.0F, 0.485F, 257.0F, 1e-6F, 1e6F};
    Normalisation normalisation{};
    normalisation.scale = choices.one_of(kNumbers);
    for (std::size_t c = 0; c < 3; ++c) {
        normalisation.channel[c] = static_cast<int>(choices.below(3));
        normalisation.mean[c] = choices.yes() ? 0.0F : choices.one_of(kNumbers);
        normalisation.stddev[c] = choices.one_of(kNumbers);
    }
    return normalisation;
}

template <class T>
void check_colour(const GrayView& image, Choices& choices, Workspaces& workspaces) {
    const std::ptrdiff_t source_side = choices.yes() ? kCropSide : choices.side(300);
    const std::ptrdiff_t side = choices.side(260);
    const LevelTables<T> tables(make_normalisation(choices));
    const auto num_source = static_cast<std::size_t>(source_side * source_side);
    const Guarded square(num_source, choices.yes() ? Flush::kLeft : Flush::kRight, 0);
    tile(image, square.bytes(), source_side);
    const bool stream = choices.yes();
    const char* name = sizeof(T) == sizeof(float) ? "colour to float32" : "colour to bfloat16";
    compare(name, static_cast<std::size_t>(3 * side * side) * sizeof(T), choices, workspaces,
            [&](const Ops& twin, const Guarded& out, Workspace& own) {
                own.colour.stream = stream;
                twin.colour<T>()(square.bytes(), source_side, tables, out.as<T>(), side, own.colour);
            });
}

// The ops as the product strings them together: box, crop and final planes.
void check_journey(const ImageView& image, Choices& choices, Workspaces& workspaces) {
    const std::ptrdiff_t side = choices.side(260);
    const LevelTables<float> tables(make_normalisation(choices));
    const std::size_t num_bytes = sizeof(Box) + kCropPixels + static_cast<std::size_t>(3 * side * side) * sizeof(float);
    compare("journey", num_bytes, choices, workspaces, [&](const Ops& twin, const Guarded& out, Workspace& own) {
        const Guarded crop(kCropPixels, Flush::kRight, 0x5A);
        const Guarded planes(num_bytes - sizeof(Box) - kCropPixels, Flush::kRight, 0x5A);
        const Box box = crop_image(image, crop.bytes(), twin, own).value_or(Box{-1, -1, -1, -1});
        finish_crop(crop.bytes(), tables, planes.as<float>(), side, twin, own);
        std::memcpy(out.bytes(), &box, sizeof box);
        std::memcpy(out.bytes() + sizeof box, crop.bytes(), crop.size());
        std::memcpy(out.bytes() + sizeof box + crop.size(), planes.bytes(), planes.size());
    });
}

void check_picture(const Picture& picture, Choices& choices, Workspaces& workspaces) {
    const Placed placed(picture, make_layout(choices));
    const ImageView& image = placed.view();
    if (image.channels == 3) {
        compare("gray", pixels_of(image), choices, workspaces,
                [&](const Ops& twin, const Guarded& out, Workspace&) { twin.gray(image, out.bytes()); });
    }
    const Guarded memory(pixels_of(image), choices.yes() ? Flush::kLeft : Flush::kRight, 0);
    const GrayView gray = gray_of(image, memory);
    check_foreground(gray, choices, workspaces);
    check_contour_of_levels(gray, workspaces);
    check_resize(gray, choices, workspaces);
    if (choices.yes()) check_denoise(gray, choices, workspaces);
    if (choices.yes()) check_colour<float>(gray, choices, workspaces);
    if (choices.yes()) check_colour<Bfloat16>(gray, choices, workspaces);
    if (choices.below(4) == 0) check_journey(image, choices, workspaces);
}

}  // namespace
}  // namespace gliofed::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    gliofed::fuzz::Choices choices(data, size);
    gliofed::fuzz::Workspaces workspaces;
    std::vector<gliofed::fuzz::Picture> pictures;
    do {
        pictures.push_back(gliofed::fuzz::make_picture(choices, pictures));
        gliofed::fuzz::check_picture(pictures.back(), choices, workspaces);
    } while (choices.below(3) != 0);
    return 0;
}
