// What the calls of compiled XLA programs share: solved batches that wait for their derivatives, and what is done without Python. See api_ffi.cpp.
#pragma once
#include <atomic>
#include <cstring>
#include <deque>
#include <stdexcept>

#include "ffi.hpp"
#include "interface.hpp"

namespace layercompiler {

// A solved batch. The point of instance i carries mark + i: points travel with their parameters, so marks identify both.
struct Entry {
  explicit Entry(int64_t count) : count(count) {}
  virtual ~Entry() = default;
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

  const int64_t count;
  uint64_t mark = 0;
  std::atomic<bool> used{false};
};

// Batches whose derivatives are to come, by mark. What is not found is solved for again from the point itself.
class Ledger {
 public:
  void put(std::shared_ptr<Entry> entry) {
    std::deque<std::shared_ptr<Entry>> gone;  // freed without the lock
    std::lock_guard<std::mutex> lock(guard_);
    if (entries_.size() >= capacity) gone.push_back(std::move(entries_.front())), entries_.pop_front();
    entries_.push_back(std::move(entry));
  }
  // Those whose derivative was taken give their memory to the next solve, while it is still in the cache.
  void drop_used() {
    std::deque<std::shared_ptr<Entry>> gone, rest;
    std::lock_guard<std::mutex> lock(guard_);
    for (auto& e : entries_) (e->used ? gone : rest).push_back(std::move(e));
    entries_.swap(rest);
  }
  std::shared_ptr<Entry> find(uint64_t mark, int64_t count) {
    std::lock_guard<std::mutex> lock(guard_);
    for (auto& e : entries_)
      if (mark && e->mark == mark && e->count == count) return e;
    return nullptr;
  }
  std::shared_ptr<Entry> take(uint64_t mark, int64_t count) {
    std::lock_guard<std::mutex> lock(guard_);
    for (auto it = entries_.begin(); it != entries_.end(); ++it)
      if ((*it)->mark == mark && (*it)->count == count && it->use_count() == 1) {
        std::shared_ptr<Entry> found = std::move(*it);
        entries_.erase(it);
        return found;
      }
    return nullptr;
  }

 private:
  static constexpr size_t capacity = 4;
  std::mutex guard_;
  std::deque<std::shared_ptr<Entry>> entries_;
};

// What a call does without Python.
struct Work {
  virtual ~Work() = default;
  virtual bool run(const ffi::Frame& frame) = 0;  // false where it is left to Python
};

// A batch that is tried, or its derivative.
struct Trial : Work {
  std::shared_ptr<Ledger> ledger;
  std::atomic<int> pause{0};  // solves that go to Python without a trial, because one before was left open
  static constexpr int rest = 8;

  bool paused() {
    if (pause <= 0) return false;
    pause--;
    return true;
  }
};

inline int64_t size_of(const ffi::Buffer& b) {
  int64_t size = 1;
  for (int64_t i = 0; i < b.rank; i++) size *= b.dims[i];
  return size;
}

inline double* numbers(const ffi::Buffers& side, int64_t k, int64_t size) {
  if (size_of(*side.at[k]) != size) throw std::invalid_argument("an argument or result has another size");
  return static_cast<double*>(side.at[k]->data);
}

inline void expect(const ffi::Frame& f, int64_t arguments, int64_t results) {
  if (f.arguments.count != arguments || f.results.count != results) throw std::invalid_argument("another number of arguments or results");
}

// A number for a call: of `python` (null for none) where `work` has nothing to do or leaves it.
int64_t ffi_call(void* python, std::unique_ptr<Work> work);
// Numbers that no other process uses either, so that a point of another process is not taken for one of this.
uint64_t ffi_marks(int64_t count);
// Writes a point, the two parts of z and its mark.
void ffi_point(double*& to, const double* first, int64_t n, const double* second, int64_t m, uint64_t mark);
// The mark of a batch of points of `size` numbers and their marks; 0 where they are not those of one batch in their order.
uint64_t ffi_mark(const double* points, int64_t count, int64_t size);
// Large results lie in fresh memory, which large pages bring in at a fraction of the time.
void prefer_large_pages(void* memory, int64_t bytes);

}  // namespace layercompiler
