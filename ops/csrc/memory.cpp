// Keeps large blocks of the CPU's memory when they are freed, for the next tensor of their size. malloc takes what is larger than 32 MiB from the
// system and gives it back at once, which then clears every page again, as often as a network makes a map: up to a quarter of a training step.
// Blocks in use and kept together are never more than have been in use at one time, so the peak stays what it was.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <cstdint>
#include <list>
#include <mutex>
#include <unordered_map>

namespace vision_mamba {
namespace {

constexpr size_t kLarge = size_t(32) << 20;
constexpr size_t kPage = size_t(2) << 20;  // of the large kind, of which a block needs fewer

class Blocks final : public c10::Allocator {
 public:
  static Blocks& get() {
    static auto* blocks = new Blocks(c10::GetCPUAllocator());  // tensors may outlive every static
    return *blocks;
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* at = bytes < kLarge ? nullptr : take((bytes + kPage - 1) / kPage * kPage);
    if (!at) return below_->allocate(bytes);
    c10::profiledCPUMemoryReporter().New(at, bytes);
    return {at, at, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  // Counts those who want blocks kept; when there are none, all are given back.
  void keep(int more) {
    const std::lock_guard<std::mutex> lock(mutex_);
    keepers_ += more;
    if (keepers_ == 0) {
      give_back(0);
      most_ = used_;
    }
  }
  void sizes(int64_t* used, int64_t* kept) {
    const std::lock_guard<std::mutex> lock(mutex_);
    *used = int64_t(used_), *kept = int64_t(kept_);
  }

 private:
  struct Block {
    void* at;
    size_t size;
  };

  explicit Blocks(c10::Allocator* below) : below_(below) {}

  // A block of that size, or null where none are kept or the system has none.
  void* take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (keepers_ == 0) return nullptr;
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      // at most a quarter is left over
      if (it->size >= size && it->size <= size + size / 4 && (best == free_.end() || it->size < best->size)) best = it;
    }
    Block block{nullptr, size};
    if (best != free_.end()) {
      block = *best;
      free_.erase(best);
      kept_ -= block.size;
    } else {
      // before it is made, lest there be more at any time than there ever had to be
      const size_t allowed = most_ > used_ + size ? most_ - used_ - size : 0;
      give_back(allowed);
      block.at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (block.at == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
      ::madvise(block.at, size, MADV_HUGEPAGE);
#endif
    }
    used_ += block.size;
    if (used_ > most_) most_ = used_;
    in_use_.emplace(block.at, block.size);
    return block.at;
  }

  // Kept blocks beyond that many bytes, the longest unused first.
  void give_back(size_t allowed) {
    while (kept_ > allowed) {
      const Block block = free_.front();
      free_.pop_front();
      kept_ -= block.size;
      ::munmap(block.at, block.size);
    }
  }

  static void release(void* at) {
    if (!get().put(at)) get().below_->raw_deleter()(at);
  }
  // Takes a block of ours back; false if it is none.
  bool put(void* at) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = in_use_.find(at);
    if (found == in_use_.end()) return false;
    const size_t size = found->second;
    in_use_.erase(found);
    used_ -= size;
    c10::profiledCPUMemoryReporter().Delete(at);
    if (keepers_ > 0) {
      free_.push_back({at, size});
      kept_ += size;
    } else {
      ::munmap(at, size);
    }
    return true;
  }

  c10::Allocator* const below_;
  std::mutex mutex_;
  int keepers_ = 0;
  size_t used_ = 0, kept_ = 0, most_ = 0;
  std::unordered_map<void*, size_t> in_use_;
  std::list<Block> free_;  // in the order of their freeing
};

}  // namespace
}  // namespace vision_mamba

extern "C" {

// One more who wants large blocks kept, or one less.
__attribute__((visibility("default"))) void vision_mamba_memory_keep(int on) {
  auto& blocks = vision_mamba::Blocks::get();
  static const bool in_place = (c10::SetCPUAllocator(&blocks, /*priority=*/255), true);
  (void)in_place;
  blocks.keep(on ? 1 : -1);
}

// Bytes of large blocks in use and kept.
__attribute__((visibility("default"))) void vision_mamba_memory_sizes(int64_t* used, int64_t* kept) {
  vision_mamba::Blocks::get().sizes(used, kept);
}
}
