// A team of threads that walks through the phases of one step together.
//
// The threads are those of torch's own OpenMP runtime, so that two pools never fight for the cores.
#pragma once

#include <atomic>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace millrace {

// GOMP_parallel of libgomp, handed in by Python; null runs everything in the calling thread.
typedef void (*RunParallel)(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// A phase is over when its tasks are done, not when every thread has come by: a thread that lost its
// core holds up the others only if it lost it within a task.
class Team {
   public:
    explicit Team(int num_phases) : phases_(size_t(num_phases)) {}

    void begin() {
        for (Phase& phase : phases_) {
            phase.next.store(0, std::memory_order_relaxed);
            phase.num_done.store(0, std::memory_order_relaxed);
        }
    }

    // Calls task(i) for 0 <= i < num_tasks, each once, by whichever thread is free. Every thread
    // goes through the phases in order; none leaves one before all its tasks are done.
    template <class Task>
    void each(int phase, int num_tasks, const Task& task) {
        Phase& own = phases_[size_t(phase)];
        for (int i; (i = own.next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
            task(i);
            if (own.num_done.fetch_add(1, std::memory_order_acq_rel) + 1 == num_tasks)
                own.num_done.notify_all();
        }
        // A peer that lost its core must get one back: spin briefly, then sleep.
        int num_done, spins = 0;
        while ((num_done = own.num_done.load(std::memory_order_acquire)) < num_tasks) {
            if (++spins < kMaxSpins) pause();
            else own.num_done.wait(num_done, std::memory_order_acquire);
        }
    }

   private:
    static constexpr int kMaxSpins = 2000;
    struct alignas(64) Phase {
        std::atomic<int> next{0};
        std::atomic<int> num_done{0};
    };
    std::vector<Phase> phases_;
};

}  // namespace millrace
