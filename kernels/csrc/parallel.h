#pragma once
// A pool of threads for one batch: workers take the next item until none is left.

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace gliofed {

// Calls work(i, workspace) once for every i < num_items, each worker with a Workspace of its own. The calling
// thread is one of the workers. The first exception stops the batch and is thrown again here.
template <class Workspace, class Work>
void parallel_for(std::size_t num_items, int num_threads, const Work& work) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    const auto run = [&] {
        try {
            Workspace workspace;
            for (std::size_t i = next++; i < num_items; i = next++) work(i, workspace);
        } catch (...) {
            next = num_items;
            const std::lock_guard guard(failure_lock);
            if (!failure) failure = std::current_exception();
        }
    };
    {
        std::vector<std::jthread> helpers;
        for (std::size_t t = 1; t < static_cast<std::size_t>(num_threads) && t < num_items; ++t) {
            helpers.emplace_back(run);
        }
        run();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace gliofed
