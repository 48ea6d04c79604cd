// Drives the fuzz target without libFuzzer: random cases until the time is over, or the cases in the files given.

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "choices.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

// A finding must end in a signal that the handler below sees; new memory is filled with rubbish, however large.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() {
    return "abort_on_error=1:handle_segv=0:handle_sigbus=0:detect_leaks=0:max_malloc_fill_size=268435456";
}
extern "C" const char* __ubsan_default_options();
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace {

constexpr std::size_t kCaseBytes = 1024;

std::array<std::uint8_t, kCaseBytes> g_case;
std::array<char, 64> g_file;

void fill_case(std::uint64_t seed) {
    gliofed::fuzz::Noise noise(seed);
    for (std::uint8_t& byte : g_case) byte = static_cast<std::uint8_t>(noise.next());
    std::snprintf(g_file.data(), g_file.size(), "fuzz-%016llx.bin", static_cast<unsigned long long>(seed));
}

// Async-signal-safe calls only.
extern "C" void keep_case(int signal) {
    const int file = open(g_file.data(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    bool kept = file >= 0 && write(file, g_case.data(), g_case.size()) == static_cast<ssize_t>(g_case.size());
    kept = kept && write(STDERR_FILENO, "gliofed_fuzz: the case is in ", 29) == 29 &&
           write(STDERR_FILENO, g_file.data(), 21) == 21 && write(STDERR_FILENO, "\n", 1) == 1;
    if (!kept) _exit(2);
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

int replay(int count, char** files) {
    for (int i = 0; i < count; ++i) {
        std::ifstream file(files[i], std::ios::binary);
        if (!file) {
            std::fprintf(stderr, "gliofed_fuzz: cannot read %s\n", files[i]);
            return 2;
        }
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
        std::printf("gliofed_fuzz: %s shows nothing\n", files[i]);
    }
    return 0;
}

int search(std::chrono::seconds limit) {
    for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, keep_case);
    std::random_device device;
    const std::uint64_t first_seed = (std::uint64_t{device()} << 32) | device();
    const auto start = std::chrono::steady_clock::now();
    unsigned long long num_cases = 0;
    while (std::chrono::steady_clock::now() - start < limit) {
        fill_case(first_seed + num_cases++);
        LLVMFuzzerTestOneInput(g_case.data(), g_case.size());
    }
    std::printf("gliofed_fuzz: %llu cases from seed %016llx, nothing found\n", num_cases,
                static_cast<unsigned long long>(first_seed));
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    char* end = nullptr;
    const long seconds = argc == 2 ? std::strtol(argv[1], &end, 10) : 0;
    if (seconds > 0 && *end == '\0') return search(std::chrono::seconds(seconds));
    if (argc > 1) return replay(argc - 1, argv + 1);
    std::fprintf(stderr, "usage: gliofed_fuzz SECONDS | gliofed_fuzz FILE...\n");
    return 2;
}
