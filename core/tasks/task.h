#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tasks/material.h"

namespace flashmorph {

// A question about a long text, and what a right answer holds.
struct TaskSample {
  std::vector<int32_t> prompt;               // ends where the answer is to go on
  std::vector<std::string> references = {};  // to be found in what is written, whatever the case
  std::vector<int32_t> words = {};           // of the passkey tasks instead: the answer itself, token by token
  int64_t most = 0;                          // tokens that a model may write
  double depth = -1.0;                       // where in the prompt what is asked for stands; -1: all over it
};

// Tasks in the structure, the counts and the scoring of RULER (arXiv 2404.06654), with words of our own, and passkeys
// as the run's evaluate asks them.
struct Task {
  const char* name;
  const char* summary;
  // Prompt and answer together are at most `length` tokens. BadInput when that is too short.
  TaskSample (*make)(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random);
  bool forced = false;  // each word is asked for behind the right ones before it, instead of being written
};

const std::vector<Task>& tasks();
const Task& task_named(const std::string& name, const std::string& where = "--tasks");  // BadInput, naming all

// Sample i of a task at a length: a pure function of these and the seed, whatever else is made.
TaskSample task_sample(const Task& task, const TaskMaterial& material, uint64_t seed, int64_t length, int64_t i);

// A number in [0, 1] for each thing that was asked for (reference or word): whether it is in what was written. A
// sample's score is their mean.
std::vector<double> scores(const TaskSample& sample, const Tokenizer& tokenizer, const std::vector<int32_t>& written);

}  // namespace flashmorph
