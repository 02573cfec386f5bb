// Logits of a GGUF model at every position of given prompts, with the router logits of chosen experts at -inf.
//
//   trimoe-masked-logits MODEL JOB.json OUT
//
// JOB: {"threads": 1, "mask": {"LAYER": [expert, ...]}, "generate": 8, "prompts": ["text", ...]}
//      or "tokens": [[id, ...], ...] instead of prompts. With "generate" N, each sequence is first continued greedily.
// OUT: a directory; 0.f32, 1.f32, ... hold float32 [tokens, vocabulary]; job.json the tokens and what was routed where.
//
// The mask acts where every architecture passes: llama.cpp calls back for each node of the graph, and those named
// ffn_moe_logits-N (and ffn_moe_probs_biased-N, where a selection bias could win over a probability of 0) are changed
// before the rest of the graph reads them.
//
// Two models that differ only in experts that are never chosen must give the same bits, but llama.cpp adds up a router
// of 98 rows in another order than one of 128, and a last bit can decide which expert is chosen. So the two sums over or
// beside experts, the router's product and its softmax, are recomputed here in double, experts in ascending order, for
// every model that this program runs. Everything else is llama.cpp's: one sequence per batch, no flash attention, float32
// cache, no repacking of weights.

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using json = nlohmann::ordered_json;

namespace {

struct Routing {
    std::map<int, std::vector<int>> mask;        // layer -> experts that must not be chosen
    std::map<int, std::vector<float>> logits;    // layer -> what its softmax reads
    std::set<int> seen;                          // layers whose router passed through the callback
    std::map<int, std::set<int>> routed;         // layer -> experts that some token was routed to
    long long selections = 0;                    // token x expert choices
    long long selections_masked = 0;             // of these, how many would have gone to a masked expert
    std::set<int> biased;                        // layers that choose by biased probabilities, not by these logits
    int top_k = 0;
    std::string error;
};

// "ffn_moe_logits-12" -> 12; -1 if the name is another one
int layer_of(const char * name, const char * prefix) {
    const size_t length = std::strlen(prefix);
    if (std::strncmp(name, prefix, length) != 0 || name[length] != '-') {
        return -1;
    }
    char * end = nullptr;
    const long layer = std::strtol(name + length + 1, &end, 10);
    return *end == '\0' && end != name + length + 1 ? int(layer) : -1;
}

// float32 values of a tensor's rows, as [rows, ne0]
std::vector<float> read_rows(const ggml_tensor * tensor) {
    const size_t width = size_t(tensor->ne[0]);
    const size_t rows = size_t(ggml_nrows(tensor));
    if (!ggml_is_contiguous(tensor)) {
        throw std::runtime_error(std::string(tensor->name) + " is not contiguous");
    }
    std::vector<float> values(width * rows);
    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_get(tensor, values.data(), 0, values.size() * sizeof(float));
        return values;
    }
    const ggml_to_float_t to_float = ggml_get_type_traits(tensor->type)->to_float;
    if (to_float == nullptr) {
        throw std::runtime_error(std::string(tensor->name) + " has a type that cannot be read");
    }
    std::vector<uint8_t> raw(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, raw.data(), 0, raw.size());
    for (size_t row = 0; row < rows; ++row) {
        to_float(raw.data() + row * ggml_row_size(tensor->type, tensor->ne[0]), values.data() + row * width, tensor->ne[0]);
    }
    return values;
}

void write_rows(ggml_tensor * tensor, const std::vector<float> & values) {
    if (tensor->type != GGML_TYPE_F32 || !ggml_is_contiguous(tensor)) {
        throw std::runtime_error(std::string(tensor->name) + " is not a contiguous float32 tensor");
    }
    ggml_backend_tensor_set(tensor, values.data(), 0, values.size() * sizeof(float));
}

// logits [tokens, experts] = input [tokens, hidden] x router [experts, hidden], added up in double
void multiply(ggml_tensor * tensor) {
    if (tensor->op != GGML_OP_MUL_MAT || tensor->src[0]->ne[0] != tensor->src[1]->ne[0]) {
        return;
    }
    const std::vector<float> router = read_rows(tensor->src[0]);
    const std::vector<float> input = read_rows(tensor->src[1]);
    const size_t hidden = size_t(tensor->src[0]->ne[0]);
    const size_t experts = router.size() / hidden;
    const size_t tokens = input.size() / hidden;
    std::vector<float> logits(experts * tokens);
    for (size_t token = 0; token < tokens; ++token) {
        for (size_t expert = 0; expert < experts; ++expert) {
            double sum = 0.0;
            for (size_t i = 0; i < hidden; ++i) {
                sum += double(router[expert * hidden + i]) * double(input[token * hidden + i]);
            }
            logits[token * experts + expert] = float(sum);
        }
    }
    write_rows(tensor, logits);
}

// probabilities [tokens, experts] = softmax of the logits, those at -inf left out, added up in double
void normalise(ggml_tensor * tensor, const std::vector<float> & logits) {
    const size_t width = size_t(tensor->ne[0]);
    if (logits.size() != size_t(ggml_nelements(tensor))) {
        throw std::runtime_error(std::string(tensor->name) + " does not fit its logits");
    }
    std::vector<float> shares(logits.size(), 0.0f);
    for (size_t start = 0; start < logits.size(); start += width) {
        const double top = *std::max_element(logits.begin() + long(start), logits.begin() + long(start + width));
        double sum = 0.0;
        for (size_t i = start; i < start + width; ++i) {
            sum += std::exp(double(logits[i]) - top);
        }
        for (size_t i = start; i < start + width; ++i) {
            shares[i] = float(std::exp(double(logits[i]) - top) / sum);
        }
    }
    write_rows(tensor, shares);
}

void exclude(ggml_tensor * tensor, const std::vector<int> & experts, Routing & routing, int layer, bool count) {
    std::vector<float> values = read_rows(tensor);
    const size_t width = size_t(tensor->ne[0]);
    for (const int expert : experts) {
        if (expert < 0 || size_t(expert) >= width) {
            throw std::runtime_error("layer " + std::to_string(layer) + " has no expert " + std::to_string(expert));
        }
    }
    for (size_t token = 0; token < values.size() / width; ++token) {
        float * row = values.data() + token * width;
        if (count && routing.top_k > 0) {
            std::vector<float> sorted(row, row + width);
            std::nth_element(sorted.begin(), sorted.begin() + (routing.top_k - 1), sorted.end(), std::greater<float>());
            const float least = sorted[size_t(routing.top_k) - 1];
            for (const int expert : experts) {
                routing.selections_masked += row[expert] >= least;
            }
        }
        for (const int expert : experts) {
            row[expert] = -INFINITY;
        }
    }
    write_rows(tensor, values);
}

// I32 [top_k, tokens], a view into a wider tensor
void record(const ggml_tensor * tensor, Routing & routing, int layer) {
    std::vector<int32_t> row(size_t(tensor->ne[0]));
    for (int64_t token = 0; token < tensor->ne[1]; ++token) {
        ggml_backend_tensor_get(tensor, row.data(), size_t(token) * tensor->nb[1], row.size() * sizeof(int32_t));
        routing.routed[layer].insert(row.begin(), row.end());
        routing.selections += (long long) row.size();
    }
}

void change(ggml_tensor * tensor, Routing & routing) {
    const int biased = layer_of(tensor->name, "ffn_moe_logits_biased");
    const int shares = layer_of(tensor->name, "ffn_moe_probs");
    const int selection = layer_of(tensor->name, "ffn_moe_probs_biased");
    const int layer = std::max({layer_of(tensor->name, "ffn_moe_logits"), biased, shares, selection});
    const auto found = routing.mask.find(layer);
    const std::vector<int> none;
    const std::vector<int> & masked = found == routing.mask.end() ? none : found->second;
    if (shares >= 0 && tensor->op == GGML_OP_SOFT_MAX) {
        normalise(tensor, routing.logits[layer]);
    } else if (selection >= 0) {
        routing.biased.insert(layer);
        exclude(tensor, masked, routing, layer, false);
    } else if (biased >= 0) {
        routing.logits[layer] = read_rows(tensor);
    } else if (shares < 0 || tensor->op == GGML_OP_MUL_MAT) {
        // The router's product; where a softmax follows only the choice it is named as the probabilities.
        multiply(tensor);
        exclude(tensor, masked, routing, layer, true);
        routing.logits[layer] = read_rows(tensor);
        routing.seen.insert(layer);
    }
}

bool on_node(ggml_tensor * tensor, bool ask, void * data) {
    Routing & routing = *static_cast<Routing *>(data);
    const int chosen = layer_of(tensor->name, "ffn_moe_topk");
    if (ask) {
        int layer = chosen;
        for (const char * name : {"ffn_moe_logits", "ffn_moe_logits_biased", "ffn_moe_probs", "ffn_moe_probs_biased"}) {
            layer = std::max(layer, layer_of(tensor->name, name));
        }
        return layer >= 0;
    }
    try {
        if (chosen >= 0) {
            record(tensor, routing, chosen);
        } else {
            change(tensor, routing);
        }
    } catch (const std::exception & problem) {
        routing.error = problem.what();
        return false;
    }
    return true;
}

std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> tokens(text.size() + 8);
    int n = llama_tokenize(vocab, text.c_str(), int(text.size()), tokens.data(), int(tokens.size()), true, true);
    if (n < 0) {
        tokens.resize(size_t(-n));
        n = llama_tokenize(vocab, text.c_str(), int(text.size()), tokens.data(), int(tokens.size()), true, true);
    }
    if (n <= 0) {
        throw std::runtime_error("a prompt has no tokens");
    }
    tokens.resize(size_t(n));
    return tokens;
}

void decode(llama_context * context, const std::vector<llama_token> & tokens, int start, bool all, Routing & routing) {
    const int count = int(tokens.size()) - start;
    llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; ++i) {
        batch.token[i] = tokens[size_t(start + i)];
        batch.pos[i] = start + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = all || i + 1 == count;
    }
    const int status = llama_decode(context, batch);
    llama_batch_free(batch);
    if (!routing.error.empty()) {
        throw std::runtime_error(routing.error);
    }
    if (status != 0) {
        throw std::runtime_error("llama_decode failed with " + std::to_string(status));
    }
}

void run(const std::string & model_path, const json & job, const std::string & out) {
    llama_model_params model_settings = llama_model_default_params();
    model_settings.n_gpu_layers = 0;
    model_settings.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(model_path.c_str(), model_settings);
    if (model == nullptr) {
        throw std::runtime_error("llama.cpp cannot load " + model_path);
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int vocabulary = llama_vocab_n_tokens(vocab);

    std::vector<std::vector<llama_token>> sequences;
    if (job.contains("tokens")) {
        sequences = job["tokens"].get<std::vector<std::vector<llama_token>>>();
    } else {
        for (const auto & text : job.at("prompts")) {
            sequences.push_back(tokenize(vocab, text.get<std::string>()));
        }
    }
    const int generate = job.value("generate", 0);
    size_t longest = 1;
    for (const auto & sequence : sequences) {
        for (const llama_token token : sequence) {
            if (token < 0 || token >= vocabulary) {
                throw std::runtime_error("token " + std::to_string(token) + " is not in the vocabulary");
            }
        }
        if (sequence.empty()) {
            throw std::runtime_error("a prompt has no tokens");
        }
        longest = std::max(longest, sequence.size() + size_t(generate));
    }

    Routing routing;
    routing.top_k = job.value("top_k", 0);
    if (job.contains("mask")) {
        for (const auto & [layer, experts] : job["mask"].items()) {
            routing.mask[std::stoi(layer)] = experts.get<std::vector<int>>();
        }
    }

    llama_context_params settings = llama_context_default_params();
    settings.n_ctx = uint32_t(longest + 8);
    settings.n_batch = uint32_t(longest + 8);
    settings.n_ubatch = uint32_t(longest + 8);
    settings.n_seq_max = 1;
    settings.n_threads = job.value("threads", 1);
    settings.n_threads_batch = settings.n_threads;
    settings.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    settings.type_k = GGML_TYPE_F32;
    settings.type_v = GGML_TYPE_F32;
    settings.offload_kqv = false;
    settings.op_offload = false;
    settings.no_perf = true;
    settings.cb_eval = on_node;
    settings.cb_eval_user_data = &routing;
    llama_context * context = llama_init_from_model(model, settings);
    if (context == nullptr) {
        throw std::runtime_error("llama.cpp cannot create a context of " + std::to_string(longest) + " tokens");
    }

    for (size_t number = 0; number < sequences.size(); ++number) {
        std::vector<llama_token> & tokens = sequences[number];
        llama_memory_t memory = llama_get_memory(context);
        if (generate > 0) {
            llama_memory_clear(memory, true);
            int start = 0;
            for (int step = 0; step < generate; ++step) {
                decode(context, tokens, start, false, routing);
                const float * logits = llama_get_logits_ith(context, -1);
                const llama_token next = llama_token(std::max_element(logits, logits + vocabulary) - logits);
                start = int(tokens.size());
                tokens.push_back(next);
                if (llama_vocab_is_eog(vocab, next)) {
                    break;
                }
            }
        }
        // The whole sequence in one batch: the comparison then does not depend on how it was generated.
        llama_memory_clear(memory, true);
        decode(context, tokens, 0, true, routing);
        std::ofstream file(out + "/" + std::to_string(number) + ".f32", std::ios::binary);
        for (size_t i = 0; i < tokens.size(); ++i) {
            const float * logits = llama_get_logits_ith(context, int(i));
            file.write(reinterpret_cast<const char *>(logits), std::streamsize(size_t(vocabulary) * sizeof(float)));
        }
        file.close();
        if (!file) {
            throw std::runtime_error("cannot write logits to " + out);
        }
        std::printf("%zu/%zu\n", number + 1, sequences.size());
        std::fflush(stdout);
    }

    json result;
    result["vocabulary"] = vocabulary;
    result["tokens"] = sequences;
    result["seen"] = routing.seen;
    result["biased"] = routing.biased;
    result["selections"] = routing.selections;
    result["selections_masked"] = routing.selections_masked;
    result["routed"] = json::object();
    for (const auto & [layer, experts] : routing.routed) {
        result["routed"][std::to_string(layer)] = experts;
    }
    std::ofstream file(out + "/job.json");
    file << result.dump();
    file.close();
    if (!file) {
        throw std::runtime_error("cannot write to " + out);
    }
    llama_free(context);
    llama_model_free(model);
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc == 2 && std::string(argv[1]) == "--version") {
        std::printf("trimoe-masked-logits, %s\n", llama_print_system_info());
        return 0;
    }
    if (argc != 4) {
        std::fprintf(stderr, "usage: trimoe-masked-logits MODEL JOB.json OUT\n");
        return 2;
    }
    try {
        std::ifstream file(argv[2]);
        const json job = json::parse(file);
        llama_backend_init();
        run(argv[1], job, argv[3]);
        llama_backend_free();
        return 0;
    } catch (const std::exception & problem) {
        std::fprintf(stderr, "error: %s\n", problem.what());
        return 1;
    }
}
