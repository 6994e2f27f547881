#pragma once

#include <google/protobuf/message.h>

#include <filesystem>
#include <string>

#include "distributed/communication/communicator.h"

namespace flashmorph {

// Protobuf messages on disk, written atomically: sealed (.pb) or in protobuf's JSON form (.json), by the file's name.
void write_message(const std::filesystem::path& file, const google::protobuf::Message& message);

// What a .pb file holds: the message and its SHA-256.
std::string sealed(const google::protobuf::Message& message);

// BadInput when the file cannot be read or is not such a message, whole and with its checksum.
void read_message(const std::filesystem::path& file, google::protobuf::Message& message);

// Rank 0 reads, all ranks get the same message; it stays as it is when there is no such file yet. Collective.
void read_on_all_ranks(const std::filesystem::path& file, google::protobuf::Message& message, Communicator& world);

}  // namespace flashmorph
