#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <future>
#include <vector>

namespace flashmorph {

// work(0), ..., work(count - 1), each once, by this thread and at most threads - 1 others, in whatever order they come
// to them. Returns when all have ended; what one has thrown is thrown then.
template <class Work>
void on_threads(size_t count, size_t threads, Work work) {
  std::atomic<size_t> next = 0;
  const auto share = [&] {
    for (size_t i; (i = next.fetch_add(1)) < count;) work(i);
  };
  std::vector<std::future<void>> others;
  for (size_t thread = 1; thread < std::min(count, threads); ++thread)
    others.push_back(std::async(std::launch::async, share));
  share();
  for (std::future<void>& other : others) other.get();
}

}  // namespace flashmorph
