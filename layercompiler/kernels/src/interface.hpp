// What the files of the C interface share: errors that do not leave it as exceptions, and memory that is kept between calls.
#pragma once
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define LC_API extern "C" __attribute__((visibility("default")))

namespace layercompiler {

inline thread_local std::string last_error;

template <class Function> int guarded(Function&& function) {
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown failure";
  }
  return -1;
}

struct Release {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<double, Release>;

// Blocks of freed factors are kept for the next factor: fresh pages would cost as much as the arithmetic.
class Recycler {
 public:
  Memory take(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(guard_);
      for (auto it = free_.begin(); it != free_.end(); ++it)
        if (it->second >= bytes && it->second <= 2 * bytes + 4096) {
          Memory found = std::move(it->first);
          sizes_ -= it->second;
          free_.erase(it);
          return found;
        }
    }
    // Large pages where the system has them: a factor is read in strides, and small pages would miss the translation cache at every one.
    constexpr size_t page = size_t{2} << 20;
    size_t align = bytes >= 2 * page ? page : 64;
    void* fresh = std::aligned_alloc(align, (bytes + 64 + align - 1) / align * align);
    if (!fresh) throw std::bad_alloc();
#if defined(__linux__)
    if (align == page) madvise(fresh, (bytes + 64 + align - 1) / align * align, MADV_HUGEPAGE);
#endif
    return Memory(static_cast<double*>(fresh));
  }
  void give(Memory memory, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard_);
    if (free_.size() >= 8 || sizes_ + bytes > (size_t{256} << 20)) return;
    sizes_ += bytes;
    free_.emplace_back(std::move(memory), bytes);
  }

 private:
  std::mutex guard_;
  std::vector<std::pair<Memory, size_t>> free_;
  size_t sizes_ = 0;
};

}  // namespace layercompiler
