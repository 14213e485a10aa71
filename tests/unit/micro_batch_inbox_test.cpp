#include <cobatch/engine/micro_batch_inbox.hpp>

#include <cstddef>
#include <vector>

#include "support/catch.hpp"

using cobatch::detail::batch_waiter;
using cobatch::detail::micro_batch_inbox;

namespace {

/// An inbox, and what those who push are told.
struct scene {
  bool push(batch_waiter& waiter) {
    return inbox.push(
        waiter, [&](batch_waiter& first) { firsts.push_back(&first); }, [&] { ++claims; });
  }
  static std::vector<batch_waiter*> list(batch_waiter* oldest) {
    std::vector<batch_waiter*> all;
    for (; oldest; oldest = oldest->link) all.push_back(oldest);
    return all;
  }

  micro_batch_inbox inbox;
  std::size_t claims = 0;
  std::vector<batch_waiter*> firsts;
};

using pointers = std::vector<batch_waiter*>;

}  // namespace

TEST_CASE("micro batch inbox: the first one sends a look, and the others come with it in their order") {
  scene test;
  batch_waiter a, b, c;
  CHECK(test.push(a));
  CHECK(test.push(b));
  CHECK(test.push(c));
  CHECK(test.claims == 1);
  CHECK(test.firsts == pointers{&a});
  CHECK(scene::list(test.inbox.take_all()) == pointers{&a, &b, &c});
  CHECK(test.push(a));
  CHECK(test.claims == 2);
}

TEST_CASE("micro batch inbox: whoever else takes all leaves it to the look that is on its way") {
  scene test;
  batch_waiter a, b;
  CHECK(test.inbox.take() == nullptr);
  test.push(a);
  CHECK(scene::list(test.inbox.take()) == pointers{&a});
  CHECK(test.inbox.take() == nullptr);
  test.push(b);
  CHECK(test.claims == 1);
  CHECK(test.firsts == pointers{&a, &b});  // each is the oldest of its list
  CHECK(scene::list(test.inbox.take_all()) == pointers{&b});
}

TEST_CASE("micro batch inbox: closed, it gives what is in it, tells of the look, and takes nobody") {
  for (const bool filled : {false, true}) {
    scene test;
    batch_waiter a, b;
    if (filled) test.push(a);
    CHECK_FALSE(test.inbox.is_closed());
    const auto contents = test.inbox.close();
    CHECK(contents.oldest == (filled ? &a : nullptr));
    CHECK(contents.look_comes == filled);
    CHECK(test.inbox.is_closed());
    CHECK_FALSE(test.push(b));
    CHECK(test.claims == (filled ? 1u : 0u));
    CHECK(test.inbox.take() == nullptr);
  }
}

TEST_CASE("micro batch inbox: taken by others before its look comes, that finds nothing when it is closed") {
  scene test;
  batch_waiter a;
  test.push(a);
  (void)test.inbox.take();
  const auto contents = test.inbox.close();
  CHECK(contents.oldest == nullptr);
  CHECK(contents.look_comes);
}
