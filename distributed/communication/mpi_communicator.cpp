#include "distributed/communication/mpi_communicator.h"

#include <ATen/ATen.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <exception>
#include <numeric>
#include <thread>

#include "core/base/clock.h"

namespace flashmorph {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 28;  // a call's count is an int
constexpr std::chrono::milliseconds kBetweenTests{1};

// Of what no group can speak: `who` is the rank and the group, where there are any.
void check_mpi(int result, const char* call, const std::string& who = "") {
  if (result == MPI_SUCCESS) return;
  char reason[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  (void)MPI_Error_string(result, reason, &length);
  throw CommunicationError(std::string(call) + " failed" + who + ": " + std::string(reason, length));
}

MPI_Datatype mpi_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return MPI_FLOAT;
    case at::kDouble:
      return MPI_DOUBLE;
    case at::kLong:
      return MPI_INT64_T;
    case at::kInt:
      return MPI_INT32_T;
    case at::kByte:
      return MPI_UINT8_T;
    case at::kBool:
      return MPI_CXX_BOOL;
    case at::kBFloat16:
      return MPI_UINT16_T;  // as bits: only moved, never reduced
    default:
      TORCH_CHECK(false, "no MPI type for tensors of ", c10::toString(type));
  }
}

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(MPI_Comm comm, std::string name, bool owned, std::shared_ptr<CallLog> log)
      : comm_(comm), name_(std::move(name)), owned_(owned) {
    check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    join(std::move(log), name_, world_ranks());
  }

  ~MpiCommunicator() override {  // must not throw: what fails here is not used any more
    int finalized = 0;
    (void)MPI_Finalized(&finalized);
    if (finalized || std::uncaught_exceptions() > 0) return;
    for (Sending& sending : sending_) (void)MPI_Wait(&sending.request, MPI_STATUS_IGNORE);
    if (owned_) (void)MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  void all_reduce(at::Tensor& values, Reduction reduction) override {
    const Call call = begin("all_reduce", values);
    if (values.scalar_type() == at::kBFloat16) {  // MPI has no such number; sums in float32 are better anyway
      at::Tensor exact = values.to(at::kFloat);
      reduce_in_place(exact, reduction);
      values.copy_(exact);
    } else {
      reduce_in_place(values, reduction);
    }
  }

  void broadcast(at::Tensor& values, int root) override {
    const Call call = begin("broadcast", values);
    in_pieces("MPI_Bcast", values, [&](void* data, int elements, MPI_Datatype type) {
      return MPI_Bcast(data, elements, type, root, comm_);
    });
  }

  at::Tensor all_gather(const at::Tensor& values) override {
    const Call call = begin("all_gather", values);
    check_host(values, "MPI_Bcast");
    std::vector<int64_t> shape = values.sizes().vec();
    shape.insert(shape.begin(), size_);
    at::Tensor all = at::empty(shape, values.options());
    all[rank_].copy_(values);
    for (int root = 0; root < size_; ++root) {
      at::Tensor slot = all[root];
      in_pieces("MPI_Bcast", slot, [&](void* data, int elements, MPI_Datatype type) {
        return MPI_Bcast(data, elements, type, root, comm_);
      });
    }
    return all;
  }

  at::Tensor reduce_scatter(const at::Tensor& values) override {
    const Call call = begin("reduce_scatter", values);
    check_host(values, "MPI_Reduce_scatter_block");
    check_slots(values);
    const at::Tensor exact = values.scalar_type() == at::kBFloat16 ? values.to(at::kFloat) : values;
    at::Tensor own = at::empty(values.sizes().slice(1), exact.options());
    const int64_t most = kMostElements / size_;
    for (int64_t done = 0; done < own.numel(); done += most) {
      at::Tensor mine = own.view(-1).narrow(0, done, std::min(most, own.numel() - done));
      const at::Tensor all = exact.view({size_, own.numel()}).narrow(1, done, mine.numel()).contiguous();
      check(MPI_Reduce_scatter_block(all.data_ptr(), mine.data_ptr(), static_cast<int>(mine.numel()),
                                     mpi_type(exact.scalar_type()), MPI_SUM, comm_),
            "MPI_Reduce_scatter_block");
    }
    return own.to(values.scalar_type());
  }

  void connect(int) override {}  // MPI does so by itself, and waits for nobody

  void send(const at::Tensor& values, int to) override {
    const Call call = begin("send", values, to);
    in_pieces("MPI_Send", values, [&](void* data, int elements, MPI_Datatype type) {
      return MPI_Send(data, elements, type, to, 0, comm_);
    });
  }

  void receive(at::Tensor& values, int from) override {
    const Call call = begin("receive", values, from);
    in_pieces("MPI_Recv", values, [&](void* data, int elements, MPI_Datatype type) {
      return MPI_Recv(data, elements, type, from, 0, comm_, MPI_STATUS_IGNORE);
    });
  }

  void send_later(const at::Tensor& values, int to) override {
    const Call call = begin("send", values, to);
    drop_sent();
    in_pieces("MPI_Isend", values, [&](void* data, int elements, MPI_Datatype type) {
      return MPI_Isend(data, elements, type, to, 0, comm_, &sending_.emplace_back(Sending{values}).request);
    });
  }

  void finish_sends() override {
    if (sending_.empty()) return;
    const Call call = begin("finish_sends", kSent);
    while (!sending_.empty()) {
      check(MPI_Wait(&sending_.front().request, MPI_STATUS_IGNORE), "MPI_Wait");
      sending_.pop_front();
    }
  }

  void barrier() override {
    const Call call = begin("barrier");
    check(MPI_Barrier(comm_), "MPI_Barrier");
  }

  bool barrier_within(double seconds) override {
    const Call call = begin("barrier");
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
    const Stopwatch waited;
    for (int done = 0;;) {
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done != 0 || waited.seconds() > seconds) return done != 0;
      std::this_thread::sleep_for(kBetweenTests);
    }
  }

  std::string broadcast_text(const std::string& text, int root) override {
    const Call call = begin("broadcast_text");
    auto length = static_cast<int64_t>(text.size());
    check(MPI_Bcast(&length, 1, MPI_INT64_T, root, comm_), "MPI_Bcast");
    std::string shared = text;  // no tensor: a text may travel before a device's library is opened
    shared.resize(static_cast<size_t>(length));
    for (int64_t done = 0; done < length; done += kMostElements) {
      const auto bytes = static_cast<int>(std::min(kMostElements, length - done));
      check(MPI_Bcast(shared.data() + done, bytes, MPI_BYTE, root, comm_), "MPI_Bcast");
    }
    return shared;
  }

  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override {
    const Call call = begin("split");
    MPI_Comm part = MPI_COMM_NULL;
    check(MPI_Comm_split(comm_, color == kNoGroup ? MPI_UNDEFINED : color, key, &part), "MPI_Comm_split");
    if (part == MPI_COMM_NULL) {
      shared_log()->add_group(name, {});  // the groups' numbers are the same on all ranks
      return nullptr;
    }
    check(MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    return std::make_unique<MpiCommunicator>(part, name, true, shared_log());
  }

 private:
  struct Sending {
    at::Tensor values;  // held until it has left
    MPI_Request request = MPI_REQUEST_NULL;
  };

  std::vector<int> world_ranks() const {
    std::vector<int> here(size_), members(size_);
    std::iota(here.begin(), here.end(), 0);
    MPI_Group group = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
    check(MPI_Comm_group(comm_, &group), "MPI_Comm_group");
    check(MPI_Comm_group(MPI_COMM_WORLD, &world), "MPI_Comm_group");
    check(MPI_Group_translate_ranks(group, size_, here.data(), world, members.data()), "MPI_Group_translate_ranks");
    check(MPI_Group_free(&group), "MPI_Group_free");
    check(MPI_Group_free(&world), "MPI_Group_free");
    return members;
  }

  void drop_sent() {
    for (int done = 1; !sending_.empty() && done != 0;) {
      check(MPI_Test(&sending_.front().request, &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done != 0) sending_.pop_front();
    }
  }

  void reduce_in_place(at::Tensor& values, Reduction reduction) {
    const bool truths = values.scalar_type() == at::kBool;  // their sum and largest: is any true
    const MPI_Op op = truths ? MPI_LOR : reduction == Reduction::sum ? MPI_SUM : MPI_MAX;
    in_pieces("MPI_Allreduce", values, [&](void* data, int elements, MPI_Datatype type) {
      return MPI_Allreduce(MPI_IN_PLACE, data, elements, type, op, comm_);
    });
  }

  void check_host(const at::Tensor& values, const char* call) const {
    TORCH_CHECK(values.is_contiguous() && values.device().is_cpu(), call, " needs a contiguous tensor in host memory");
  }

  template <class Call>
  void in_pieces(const char* name, const at::Tensor& values, Call call) {
    check_host(values, name);
    const MPI_Datatype type = mpi_type(values.scalar_type());
    auto* data = static_cast<char*>(values.data_ptr());
    for (int64_t done = 0; done < values.numel(); done += kMostElements) {
      const auto elements = static_cast<int>(std::min(kMostElements, values.numel() - done));
      check(call(data + done * values.element_size(), elements, type), name);
    }
  }

  void check(int result, const char* call) const {
    if (result == MPI_SUCCESS) return;
    check_mpi(result, call,
              " on rank " + std::to_string(rank_) + " of " + std::to_string(size_) + " in group '" + name_ + "'");
  }

  MPI_Comm comm_;
  std::string name_;
  bool owned_;
  std::deque<Sending> sending_;
  int rank_ = 0;
  int size_ = 1;
};

// A waiting rank burns its core; when ranks outnumber cores that starves the ones it waits for.
void yield_when_crowded() {
  const char* local_ranks = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  if (local_ranks != nullptr && std::atoi(local_ranks) > static_cast<int>(std::thread::hardware_concurrency()))
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
}

// Open MPI's one-sided calls over libfabric sleep for a second when they are opened; this program makes none.
void leave_one_sided_libfabric_out() { setenv("OMPI_MCA_btl", "^ofi", 0); }

}  // namespace

MpiSession::MpiSession(int* argc, char*** argv) {
  yield_when_crowded();
  leave_one_sided_libfabric_out();
  int provided = 0;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED)
    throw CommunicationError("this MPI takes no process with threads: MPI_THREAD_FUNNELED is needed");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() == 0) (void)MPI_Finalize();  // nothing of MPI is used after it
}

std::unique_ptr<Communicator> MpiSession::world() const {
  return std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, "world", false, std::make_shared<CallLog>());
}

void MpiSession::abort(int code) {
  (void)MPI_Abort(MPI_COMM_WORLD, code);  // it does not return; where it does, this process ends at least
  std::_Exit(code);
}

}  // namespace flashmorph
