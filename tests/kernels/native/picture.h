#pragma once
// Images made from the fuzzer's bytes: all that a mask, a contour or a vector loop could trip over.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "choices.h"
#include "guarded.h"
#include "image.h"

namespace gliofed::fuzz {

// Pixels without gaps; three channels lie interleaved.
struct Picture {
    std::ptrdiff_t height;
    std::ptrdiff_t width;
    int channels;
    ChannelOrder order;
    std::vector<std::uint8_t> pixels;
};

// Sometimes of the sides that an earlier picture had: buffers then hold what fits nearly.
Picture make_picture(Choices& choices, const std::vector<Picture>& earlier);

// How a picture lies in memory.
struct Layout {
    std::ptrdiff_t gap;  // bytes between rows
    bool backwards;      // the last row comes first
    Flush flush;
};

Layout make_layout(Choices& choices);

class Placed {
  public:
    Placed(const Picture& picture, const Layout& layout);

    const ImageView& view() const { return view_; }

  private:
    Guarded memory_;
    ImageView view_;
};

}  // namespace gliofed::fuzz
