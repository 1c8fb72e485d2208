// The four calls of libtorch's c10d that data-parallel training needs and tch does not bind. Each returns nothing where it
// succeeded, and otherwise what went wrong, for the caller to free.

#include <c10/util/intrusive_ptr.h>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/types.h>
#include <vector>

using Backend = c10::intrusive_ptr<c10d::Backend>;

namespace {

char* said(const std::exception& error) {
  return strdup(error.what());
}

} // namespace

extern "C" {

char* proxrl_team_join(
    int rank,
    int size,
    const char* host,
    int port,
    int serves,
    const char* prefix,
    const char* interface_name,
    int64_t meeting_ms,
    int64_t patience_ms,
    Backend** team) {
  try {
    const auto meeting = std::chrono::milliseconds(meeting_ms);
    const auto patience = std::chrono::milliseconds(patience_ms);
    c10d::TCPStoreOptions address;
    address.port = static_cast<uint16_t>(port);
    address.isServer = serves != 0;
    address.numWorkers = size;
    address.timeout = meeting;
    auto server = c10::make_intrusive<c10d::TCPStore>(std::string(host), address);
    auto store = c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), server);
    auto options = c10d::ProcessGroupGloo::Options::create(patience);
    options->devices.push_back(
        *interface_name == 0 ? c10d::ProcessGroupGloo::createDefaultDevice()
                             : c10d::ProcessGroupGloo::createDeviceForInterface(interface_name));
    *team = new Backend(c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options));
    return nullptr;
  } catch (const std::exception& error) {
    return said(error);
  }
}

// Replaces the tensor on every rank by the sum over ranks.
char* proxrl_team_sum(Backend* team, at::Tensor* tensor) {
  try {
    std::vector<at::Tensor> tensors{*tensor};
    (*team)->allreduce(tensors)->wait();
    return nullptr;
  } catch (const std::exception& error) {
    return said(error);
  }
}

// Replaces the tensor on every rank by that of one.
char* proxrl_team_broadcast(Backend* team, at::Tensor* tensor, int from) {
  try {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    (*team)->broadcast(tensors, options)->wait();
    return nullptr;
  } catch (const std::exception& error) {
    return said(error);
  }
}

void proxrl_team_leave(Backend* team) {
  delete team;
}

} // extern "C"
