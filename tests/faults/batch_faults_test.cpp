#include <cobatch/batch_predict.hpp>

#include <cstddef>
#include <iterator>
#include <string>

#include "faults/faulty_batch.hpp"
#include "support/catch.hpp"

using cobatch::batch_predict;

namespace {

/// The samples in a single pass, from iterators of which everything may fail.
class single_pass {
 public:
  explicit single_pass(int size) : size_(size) {}

  class iterator {
   public:
    using iterator_concept = std::input_iterator_tag;
    using value_type = fragile;
    using difference_type = std::ptrdiff_t;

    iterator() = default;
    explicit iterator(int number) : number_(number) {}
    fragile operator*() const {
      may_strike(fault::read);
      return fragile(number_);
    }
    iterator& operator++() {
      may_strike(fault::advance);
      ++number_;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(const iterator& other) const {
      may_strike(fault::compare);
      return number_ == other.number_;
    }

   private:
    int number_ = 0;
  };

  iterator begin() const { return iterator(0); }
  iterator end() const { return iterator(size_); }

 private:
  int size_;
};

}  // namespace

TEST_CASE("faults: a batch over a vector, with each combination of options and each fault") {
  std::size_t faults = 0;
  for (const wishes& each : all_wishes()) {
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      faults += inject(std::string("vector, ") + each.name, all_faults, [&](verdict& v) {
        world w(each, seed);
        w.fill();
        if (each.weights) {
          run_batch(v, w, true, [&] {
            return batch_predict(w.sim, w.samples, cobatch::weighted(world_predict{&w}, world_cost()), w.options());
          });
        } else {
          run_batch(v, w, true, [&] { return batch_predict(w.sim, w.samples, world_predict{&w}, w.options()); });
        }
      });
    }
  }
  CHECK(faults > 1000);
}

TEST_CASE("faults: a batch over an input that is read in a single pass") {
  std::size_t faults = 0;
  for (const wishes& each : all_wishes()) {
    if (each.weights) continue;
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      faults += inject(std::string("single pass, ") + each.name, all_faults, [&](verdict& v) {
        world w(each, seed);
        run_batch(v, w, false, [&] {
          return batch_predict(w.sim, single_pass(samples_of_a_batch), world_predict{&w}, w.options());
        });
      });
    }
  }
  CHECK(faults > 1000);
}
