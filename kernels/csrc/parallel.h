#pragma once
// A pool of threads for one batch: workers take the next item until none is left.

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
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
            try {
                helpers.emplace_back(run);
            } catch (const std::system_error& error) {
                next = num_items;  // those that were started stop at their next item
                throw std::system_error(error.code(), "cannot start thread " + std::to_string(t + 1) + " of " +
                                                          std::to_string(num_threads) + ", ask for fewer");
            }
        }
        run();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace gliofed
