#include <gtest/gtest.h>

#include "distributed/communication/mpi_communicator.h"
#include "tests/mpi/world.h"

namespace flashmorph::test {
namespace {

Communicator* all_ranks = nullptr;

}  // namespace

Communicator& world() { return *all_ranks; }

}  // namespace flashmorph::test

// Every rank runs every test; only rank 0 speaks, but a failure on any rank fails the program.
int main(int argc, char** argv) {
  flashmorph::MpiSession session(&argc, &argv);
  ::testing::InitGoogleTest(&argc, argv);
  const auto world = session.world();
  flashmorph::test::all_ranks = world.get();
  if (world->rank() != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    class FailuresOnly : public ::testing::EmptyTestEventListener {
      void OnTestPartResult(const ::testing::TestPartResult& result) override {
        if (result.failed()) fprintf(stderr, "%s:%d: %s\n", result.file_name(), result.line_number(), result.message());
      }
    };
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOnly);
  }
  return RUN_ALL_TESTS();
}
