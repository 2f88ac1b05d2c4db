#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
static long process_id() { return getpid(); }
#else
static long process_id() { return 0; }
#endif

namespace layercompiler {
namespace {

struct Job {
  int64_t count;
  void (*work)(void*, int64_t);
  void* context;
  std::atomic<int64_t> next{0};
  int waiting = 0;  // threads inside, guarded by the pool's mutex
  std::exception_ptr error;
  std::mutex error_guard;

  void run() {
    for (int64_t i; (i = next.fetch_add(1)) < count;) try {
        work(context, i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_guard);
        error = std::current_exception();
      }
  }
};

class Pool {
 public:
  explicit Pool(long process) : process(process) {}
  const long process;

  void run(Job& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(guard_);
      while (static_cast<int>(threads_) < helpers) {
        std::thread([this] { loop(); }).detach();
        threads_++;
      }
      for (int k = 0; k < helpers; k++) queue_.push_back(&job);
    }
    wake_.notify_all();
    job.run();
    std::unique_lock<std::mutex> lock(guard_);
    queue_.erase(std::remove(queue_.begin(), queue_.end(), &job), queue_.end());
    done_.wait(lock, [&] { return job.waiting == 0; });
  }

 private:
  void loop() {
    std::unique_lock<std::mutex> lock(guard_);
    for (;;) {
      wake_.wait(lock, [&] { return !queue_.empty(); });
      Job* job = queue_.front();
      queue_.pop_front();
      job->waiting++;
      lock.unlock();
      job->run();
      lock.lock();
      if (--job->waiting == 0) done_.notify_all();
    }
  }

  std::mutex guard_;
  std::condition_variable wake_, done_;
  std::deque<Job*> queue_;
  size_t threads_ = 0;
};

// Never destroyed: detached workers may outlive static destruction. A forked child has no workers, so it gets a pool of its own.
Pool& pool() {
  static std::mutex guard;
  static Pool* current = nullptr;
  std::lock_guard<std::mutex> lock(guard);
  if (!current || current->process != process_id()) current = new Pool(process_id());
  return *current;
}

struct Scratch {
  void* memory = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(memory); }
};

}  // namespace

void run_parallel(int64_t count, int threads, void (*work)(void*, int64_t), void* context) {
  int helpers = static_cast<int>(std::min<int64_t>(std::min(threads, 256), count)) - 1;
  if (helpers < 1) {
    for (int64_t i = 0; i < count; i++) work(context, i);
    return;
  }
  Job job;
  job.count = count;
  job.work = work;
  job.context = context;
  pool().run(job, helpers);
  if (job.error) std::rethrow_exception(job.error);
}

void* scratch(size_t bytes) {
  static thread_local Scratch mine;
  if (mine.size < bytes) {
    std::free(mine.memory);
    mine.size = 0;
    size_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    mine.memory = std::aligned_alloc(64, size);
    if (!mine.memory) throw std::bad_alloc();
    mine.size = size;
  }
  return mine.memory;
}

}  // namespace layercompiler
