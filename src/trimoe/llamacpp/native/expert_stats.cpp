// What every expert of a GGUF model contributes to given windows of tokens, and the model's tokenizer and replies.
//
//   trimoe-expert-stats measure MODEL JOB.json STATE
//   trimoe-expert-stats text MODEL            one JSON request per line of standard input, one answer per line
//   trimoe-expert-stats reply MODEL CONTEXT THREADS
//
// measure: JOB holds sizes, windows and batches (see Job below). Sums are kept in memory as float64 and written to STATE
// every few seconds and at the end, by rename: a killed run continues after the last batch of STATE, with the same result.
// text: {"text": "...", "special": true} -> {"tokens": [...]}; {"tokens": [...]} -> {"text": "..."}
// reply: {"tokens": [...], "most": 64, "stop": [ids]} -> {"tokens": [...], "stopped": true}, chosen greedily
//
// llama.cpp calls back for each node of the graph. Nodes are recognised by the weight that they multiply (router, experts'
// down projection, its bias and scale), which holds for every architecture, and the router's final weights and ranking by
// the names that build_moe_ffn gives them. In the first graph, each layer's w |o| are compared with the rows that the graph
// adds up, so that an architecture that weights differently is an error. The tokens of a graph are compared with those that were sent, so that a batch
// that llama.cpp divides in another order is an error and not a wrong sum.

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

#include <nlohmann/json.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using json = nlohmann::ordered_json;

namespace {

constexpr float MAX_ABS = 1e6f;           // larger values are numerical accidents; their tokens are left out
constexpr int SEQUENCES = 64;             // windows per decode at most

// Sums per window. Those by kind of position come first; the names are sent to trimoe with the result.
enum Field { TC, CC, WNORM, RNORM, WNSQ, RNSQ, WSUM, WSUM_TOTAL, REAP, REAP_L2, EAN, TOKENS, BY_KIND, RUNNER_UP = BY_KIND, LOGIT, LOGIT_SQ, FIELDS };
const std::vector<std::string> NAMES = {
    "tc", "cc", "wnorm", "rnorm", "wnsq", "rnsq", "wsum", "wsum_total", "reap_sum", "reap_l2_sum", "ean_sum", "tokens",
    "runner_up", "logit_sum", "logit_sqsum",
};

struct Window {
    int category = 0;
    int shard = 0;
    double weight = 1.0;
    std::vector<llama_token> tokens;
    std::vector<bool> counted;
    std::vector<int> kinds;               // of each position, below Job::kinds; empty if there is one kind only
};

struct Job {
    size_t classes, shards, layers, experts, hidden, inner;
    size_t kinds;                         // of position that are also summed apart
    int prompt;                           // the kind of prompts, -1 if there are none
    std::vector<bool> answered;           // classes in which prompts do not count towards neurons
    bool coactivation, neurons;
    bool bias;                            // the down projections have a bias
    std::string scale;                    // "none", "weight": part of the router's weight, "output": part of the expert
    int threads;
    int batch_tokens;                     // positions of one decode at most
    double save_seconds;                  // between two states on disk
    std::string identity;
    std::vector<Window> windows;
    std::vector<std::pair<int, std::vector<int>>> batches;  // padded length, windows

    explicit Job(const json & job)
        : classes(job.at("classes")), shards(job.at("shards")), layers(job.at("layers")), experts(job.at("experts")),
          hidden(job.at("hidden")), inner(job.at("inner")), kinds(job.at("kinds")),
          prompt(job.at("prompt")), answered(job.at("answered").get<std::vector<bool>>()), coactivation(job.at("coactivation")), neurons(job.at("neurons")),
          bias(job.at("bias")), scale(job.at("scale")), threads(job.at("threads")),
          batch_tokens(job.at("batch_tokens")), save_seconds(job.at("save_seconds")), identity(job.at("identity")) {
        for (const auto & entry : job.at("windows")) {
            Window window;
            window.category = entry.at("class");
            window.shard = entry.at("shard");
            window.weight = entry.at("weight");
            window.tokens = entry.at("tokens").get<std::vector<llama_token>>();
            window.counted.assign(window.tokens.size(), true);
            if (entry.contains("counted")) {
                std::fill(window.counted.begin(), window.counted.end(), false);
                for (const size_t place : entry["counted"].get<std::vector<size_t>>()) {
                    window.counted.at(place) = true;
                }
            }
            if (kinds > 0) {
                window.kinds = entry.at("kinds").get<std::vector<int>>();
                if (window.kinds.size() != window.tokens.size()) {
                    throw std::runtime_error("a window has kinds for other tokens");
                }
            }
            windows.push_back(std::move(window));
        }
        for (const auto & entry : job.at("batches")) {
            batches.emplace_back(entry.at("length").get<int>(), entry.at("windows").get<std::vector<int>>());
        }
    }
};

// All results, in the order in which they are written.
struct State {
    size_t done = 0;                      // finished batches
    std::vector<double> sums;             // [field, class, shard, layer, expert]: FIELDS, then BY_KIND of each kind
    std::vector<double> maxima;           // [2, class, layer, expert]: w |o|, |o|
    std::vector<double> routed;           // [class, layer, expert]
    std::vector<double> masked;           // [2, class, layer]: tokens, outputs
    std::vector<double> vectors;          // [class, layer, expert, hidden]
    std::vector<double> pairs;            // [class, layer, expert, expert] or empty
    std::vector<double> neurons;          // [class, layer, expert, inner] squared activations, or empty
    std::vector<double> weighted;         // the same times the squared weight
    std::vector<double> columns;          // [layer, expert, inner] squared norms of the down projection's columns

    explicit State(const Job & job) {
        const size_t cells = job.classes * job.layers * job.experts;
        sums.resize((FIELDS + job.kinds * BY_KIND) * job.shards * cells);
        maxima.resize(2 * cells);
        routed.resize(cells);
        masked.resize(2 * job.classes * job.layers);
        vectors.resize(cells * job.hidden);
        pairs.resize(job.coactivation ? cells * job.experts : 0);
        neurons.resize(job.neurons ? cells * job.inner : 0);
        weighted.resize(neurons.size());
        columns.resize(neurons.size() / job.classes);
    }

    std::vector<std::vector<double> *> arrays() {
        return {&sums, &maxima, &routed, &masked, &vectors, &pairs, &neurons, &weighted, &columns};
    }

    // One line of JSON, then the arrays as little-endian float64.
    void save(const std::string & path, const Job & job) {
        const std::string temporary = path + ".tmp";
        FILE * file = std::fopen(temporary.c_str(), "wb");
        if (file == nullptr) {
            throw std::runtime_error("cannot write " + temporary);
        }
        const json head = {{"identity", job.identity}, {"done", done}, {"batches", job.batches.size()}};
        const std::string line = head.dump() + "\n";
        bool good = std::fwrite(line.data(), 1, line.size(), file) == line.size();
        for (const auto * array : arrays()) {
            good = good && std::fwrite(array->data(), sizeof(double), array->size(), file) == array->size();
        }
        good = std::fflush(file) == 0 && fsync(fileno(file)) == 0 && good;
        good = std::fclose(file) == 0 && good;
        if (!good || std::rename(temporary.c_str(), path.c_str()) != 0) {
            throw std::runtime_error("cannot write " + path + ": is the disk full?");
        }
    }

    void load(const std::string & path, const Job & job) {
        std::ifstream file(path, std::ios::binary);
        std::string line;
        if (!file || !std::getline(file, line)) {
            return;
        }
        const json head = json::parse(line);
        if (head.at("identity") != job.identity) {
            throw std::runtime_error(path + " belongs to another job");
        }
        for (auto * array : arrays()) {
            file.read(reinterpret_cast<char *>(array->data()), std::streamsize(array->size() * sizeof(double)));
        }
        if (!file) {
            throw std::runtime_error(path + " is incomplete");
        }
        done = head.at("done");
    }
};

// "ffn_moe_topk-12" -> 12; -1 if the name is another one
int layer_of(const char * name, const char * prefix) {
    const size_t length = std::strlen(prefix);
    if (std::strncmp(name, prefix, length) != 0 || name[length] != '-') {
        return -1;
    }
    char * end = nullptr;
    const long layer = std::strtol(name + length + 1, &end, 10);
    return *end == '\0' && end != name + length + 1 ? int(layer) : -1;
}

// The layer of a weight "blk.12.REST", or of a view of it; -1 if it is another tensor
int weight_layer(const ggml_tensor * tensor, const char * rest) {
    while (tensor != nullptr && std::strncmp(tensor->name, "blk.", 4) != 0) {
        // A scale is repeated for each token before its rows are taken.
        tensor = tensor->view_src != nullptr ? tensor->view_src : tensor->op == GGML_OP_REPEAT ? tensor->src[0] : nullptr;
    }
    if (tensor == nullptr) {
        return -1;
    }
    char * end = nullptr;
    const long layer = std::strtol(tensor->name + 4, &end, 10);
    // Reshaping appends " (reshaped)" to the name.
    const size_t length = std::strlen(rest);
    const bool same = *end == '.' && std::strncmp(end + 1, rest, length) == 0 && (end[1 + length] == '\0' || end[1 + length] == ' ');
    return same ? int(layer) : -1;
}

// float32 [rows, width] of a contiguous tensor of float32
std::vector<float> values_of(const ggml_tensor * tensor) {
    if (tensor->type != GGML_TYPE_F32) {
        throw std::runtime_error(std::string(tensor->name) + " is not float32");
    }
    const size_t width = size_t(tensor->ne[0]);
    std::vector<float> values(size_t(ggml_nelements(tensor)));
    if (ggml_is_contiguous(tensor)) {
        ggml_backend_tensor_get(tensor, values.data(), 0, values.size() * sizeof(float));
        return values;
    }
    if (tensor->nb[0] != sizeof(float)) {
        throw std::runtime_error(std::string(tensor->name) + " has no contiguous rows");
    }
    size_t row = 0;
    for (int64_t k = 0; k < tensor->ne[2]; ++k) {
        for (int64_t j = 0; j < tensor->ne[1]; ++j, ++row) {
            ggml_backend_tensor_get(
                tensor, values.data() + row * width, size_t(j) * tensor->nb[1] + size_t(k) * tensor->nb[2], width * sizeof(float)
            );
        }
    }
    return values;
}

std::vector<int32_t> numbers_of(const ggml_tensor * tensor) {
    if (tensor->type != GGML_TYPE_I32) {
        throw std::runtime_error(std::string(tensor->name) + " is not int32");
    }
    const size_t width = size_t(tensor->ne[0]);
    std::vector<int32_t> values(size_t(ggml_nelements(tensor)));
    for (int64_t row = 0; row < tensor->ne[1]; ++row) {
        ggml_backend_tensor_get(tensor, values.data() + size_t(row) * width, size_t(row) * tensor->nb[1], width * sizeof(int32_t));
    }
    return values;
}

// Adds the squared norms of the columns of one layer's down projections [hidden, inner] to `into` [expert, inner]
void add_columns(const ggml_tensor * down, std::vector<double>::iterator into) {
    const size_t inner = size_t(down->ne[0]), rows = size_t(down->ne[1]), row_size = ggml_row_size(down->type, down->ne[0]);
    const ggml_to_float_t to_float = ggml_get_type_traits(down->type)->to_float;
    if (to_float == nullptr && down->type != GGML_TYPE_F32) {
        throw std::runtime_error(std::string(down->name) + " has a type that cannot be read");
    }
    std::vector<uint8_t> raw(row_size);
    std::vector<float> values(inner);
    for (size_t row = 0; row < rows * size_t(down->ne[2]); ++row) {
        ggml_backend_tensor_get(down, raw.data(), row * row_size, row_size);
        if (down->type == GGML_TYPE_F32) {
            std::memcpy(values.data(), raw.data(), row_size);
        } else {
            to_float(raw.data(), values.data(), int64_t(inner));
        }
        for (size_t i = 0; i < inner; ++i) {
            into[long((row / rows) * inner + i)] += double(values[i]) * double(values[i]);
        }
    }
}

// Sums of one window in one layer and expert, over all positions or those of one kind
struct Cell {
    double n = 0, weight = 0, weighted = 0, weighted_sq = 0, norm = 0, norm_sq = 0, weighted_norm = 0;
    double runner = 0, logit = 0, logit_sq = 0;

    void add(double w, double length) {
        const double contribution = w * length;
        n += 1;
        weight += w;
        weighted += contribution;
        weighted_sq += contribution * contribution;
        norm += length;
        norm_sq += length * length;
        weighted_norm += contribution * length;
    }
};

// A layer in the current graph
struct Pass {
    std::vector<float> weights;           // [token, k] as last named
    std::vector<int32_t> ranking;         // [token, expert] by preference
    std::vector<float> logits;            // [token, expert]
    std::vector<float> scale;             // [token, k]
    std::vector<bool> sane;               // [token] expert input
    std::vector<double> contribution;     // [token, k] w |o| of a reduced layer, until it was compared
    std::vector<float> activation;        // [token, k, inner] when neurons are measured
    const ggml_tensor * product = nullptr;  // down projection
    const ggml_tensor * output = nullptr;   // what carries the expert's output: product, or its scaled or biased form
    bool weighted_before = false;         // the input was multiplied by the router's weight
};

class Recorder {
public:
    Recorder(const Job & job, State & state) : job(job), state(state) {}

    std::string error;
    std::set<int> seen;                   // layers that were reduced
    bool ran = false;                     // anything was decoded

    // The windows whose tokens, padded to `length`, are about to be decoded one after the other
    void begin(const std::vector<int> & chosen, int length) {
        windows = chosen;
        tokens.clear();
        counted.clear();
        owner.clear();
        kind.clear();
        for (size_t i = 0; i < chosen.size(); ++i) {
            const Window & window = job.windows.at(size_t(chosen[i]));
            for (int place = 0; place < length; ++place) {
                const bool real = size_t(place) < window.tokens.size();
                tokens.push_back(real ? window.tokens[size_t(place)] : window.tokens.back());
                counted.push_back(real && window.counted[size_t(place)]);
                owner.push_back(int(i));
                kind.push_back(real && !window.kinds.empty() ? window.kinds[size_t(place)] : -1);
            }
        }
        cells.assign(chosen.size() * slots() * job.layers * job.experts, Cell());
        used.assign(chosen.size() * slots() * job.layers, 0.0);
        next = first = count = 0;
        layer_input.clear();
    }

    const std::vector<llama_token> & sent() const { return tokens; }

    // Add the windows to the sums. Every layer of a window was reduced before.
    void end() {
        if (next != tokens.size()) {
            throw std::runtime_error("llama.cpp left out tokens of a batch");
        }
        for (const auto & [layer, p] : pass) {
            if (p.product != nullptr) {
                throw std::runtime_error("the graph ignores the bias or scale of the experts of layer " + std::to_string(layer));
            }
        }
        ran = true;
        for (size_t i = 0; i < windows.size(); ++i) {
            const Window & window = job.windows[size_t(windows[i])];
            for (size_t slot = 0; slot < slots(); ++slot) {
                const size_t row = (i * slots() + slot) * job.layers;
                fold(window, &cells[row * job.experts], &used[row], slot);
            }
        }
    }

    bool wants(const ggml_tensor * t) {
        if (t->op == GGML_OP_GET_ROWS && std::strcmp(t->src[0]->name, "token_embd.weight") == 0) {
            return true;
        }
        if (const int layer = layer_of(t->name, "ffn_moe_weighted"); layer >= 0 && pass[layer].product == nullptr) {
            pass[layer].weighted_before = true;
        }
        if (compares(t)) {
            return true;
        }
        return weights_layer(t) >= 0 || ranking_layer(t) >= 0 || logits_layer(t) >= 0 || input_layer(t) >= 0 ||
            down_layer(t) >= 0 || scale_layer(t) >= 0 || later_layer(t) >= 0 || layer_of(t->name, "l_out") >= 0;
    }

    void see(const ggml_tensor * t) {
        int layer = -1;
        if (t->op == GGML_OP_GET_ROWS && std::strcmp(t->src[0]->name, "token_embd.weight") == 0) {
            start(t);
        } else if (compares(t)) {
            compare(t, layer_of(t->name, "ffn_moe_weighted"));
        } else if ((layer = layer_of(t->name, "l_out")) >= 0) {
            layer_input[layer + 1] = sane_rows(t);
        } else if ((layer = weights_layer(t)) >= 0) {
            pass[layer].weights = values_of(t);
        } else if ((layer = ranking_layer(t)) >= 0) {
            pass[layer].ranking = numbers_of(t);
        } else if ((layer = logits_layer(t)) >= 0) {
            pass[layer].logits = values_of(t);
        } else if ((layer = scale_layer(t)) >= 0) {
            pass[layer].scale = values_of(t);
            reduce_when_complete(layer);
        } else if ((layer = input_layer(t)) >= 0) {
            if (pass[layer].sane.empty()) {
                pass[layer].sane = sane_tokens(t->src[1]);
            }
        } else if ((layer = down_layer(t)) >= 0) {
            pass[layer].product = t;
            pass[layer].output = final_at_product() ? t : nullptr;
            if (job.neurons) {
                pass[layer].activation = values_of(t->src[1]);
                const auto mine = state.columns.begin() + long(size_t(layer) * job.experts * job.inner);
                if (std::all_of(mine, mine + long(job.experts * job.inner), [](double v) { return v == 0; })) {
                    add_columns(t->src[0], mine);
                }
            }
            reduce_when_complete(layer);
        } else if ((layer = later_layer(t)) >= 0) {
            pass[layer].output = t;
            reduce_when_complete(layer);
        }
    }

private:
    const Job & job;
    State & state;
    std::vector<int> windows;
    std::vector<llama_token> tokens;      // of all windows, padded
    std::vector<bool> counted;
    std::vector<int> owner;               // token -> number of its window
    std::vector<int> kind;                // of each token's position, -1 if they are not told apart
    std::vector<Cell> cells;              // [window, slot, layer, expert]; slot 0 is for all positions, 1 + n for kind n
    std::vector<double> used;             // [window, slot, layer] tokens
    size_t first = 0, count = 0, next = 0;  // tokens of the current graph: [first, first + count); next one
    std::map<int, Pass> pass;
    std::map<int, std::vector<bool>> layer_input;
    std::set<int> compared;               // layers whose weights were compared with the graph's

    size_t slots() const { return 1 + job.kinds; }

    static int weights_layer(const ggml_tensor * t) {
        int layer = -1;
        for (const char * name : {"ffn_moe_weights", "ffn_moe_weights_softmax", "ffn_moe_weights_norm", "ffn_moe_weights_scaled"}) {
            layer = std::max(layer, layer_of(t->name, name));
        }
        return layer;
    }

    static int ranking_layer(const ggml_tensor * t) {
        return t->op == GGML_OP_ARGSORT ? layer_of(t->name, "ffn_moe_argsort") : -1;
    }

    static int logits_layer(const ggml_tensor * t) {
        if (t->op == GGML_OP_MUL_MAT) {
            return weight_layer(t->src[0], "ffn_gate_inp.weight");
        }
        return t->op == GGML_OP_ADD ? weight_layer(t->src[1], "ffn_gate_inp.bias") : -1;
    }

    static int input_layer(const ggml_tensor * t) {
        int layer = -1;
        if (t->op == GGML_OP_MUL_MAT_ID) {
            for (const char * name : {"ffn_gate_up_exps.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight"}) {
                layer = std::max(layer, weight_layer(t->src[0], name));
            }
        }
        return layer;
    }

    static int down_layer(const ggml_tensor * t) {
        return t->op == GGML_OP_MUL_MAT_ID ? weight_layer(t->src[0], "ffn_down_exps.weight") : -1;
    }

    int scale_layer(const ggml_tensor * t) const {
        return t->op == GGML_OP_GET_ROWS && job.scale == "weight" ? weight_layer(t->src[0], "ffn_down_exps.scale") : -1;
    }

    bool final_at_product() const { return !job.bias && job.scale != "output"; }

    // The node after the product that carries the expert's whole output
    int later_layer(const ggml_tensor * t) const {
        if (job.bias) {
            return t->op == GGML_OP_ADD_ID ? weight_layer(t->src[1], "ffn_down_exps.bias") : -1;
        }
        if (job.scale == "output" && t->op == GGML_OP_MUL && t->src[0]->op == GGML_OP_MUL_MAT_ID) {
            return weight_layer(t->src[0]->src[0], "ffn_down_exps.weight");
        }
        return -1;
    }

    // A new graph: which of the tokens it holds
    void start(const ggml_tensor * embedding) {
        const ggml_tensor * ids = embedding->src[1];
        const std::vector<int32_t> here = numbers_of(ids);
        first = next;
        count = here.size();
        next = first + count;
        if (next > tokens.size() || !std::equal(here.begin(), here.end(), tokens.begin() + long(first))) {
            throw std::runtime_error("llama.cpp divided a batch in another order than it was sent");
        }
        pass.clear();
        layer_input.clear();
    }

    static std::vector<bool> sane_rows(const ggml_tensor * t) {
        const std::vector<float> values = values_of(t);
        const size_t width = size_t(t->ne[0]);
        std::vector<bool> sane(values.size() / width, true);
        for (size_t i = 0; i < values.size(); ++i) {
            if (!(std::fabs(values[i]) <= MAX_ABS)) {
                sane[i / width] = false;
            }
        }
        return sane;
    }

    // [hidden, 1 or k, tokens] -> [tokens]
    static std::vector<bool> sane_tokens(const ggml_tensor * t) {
        const std::vector<bool> rows = sane_rows(t);
        const size_t each = size_t(t->ne[1]);
        std::vector<bool> sane(rows.size() / each, true);
        for (size_t i = 0; i < rows.size(); ++i) {
            if (!rows[i]) {
                sane[i / each] = false;
            }
        }
        return sane;
    }

    void reduce_when_complete(int layer) {
        Pass & p = pass[layer];
        if (p.output != nullptr && (job.scale != "weight" || !p.scale.empty())) {
            std::vector<double> contribution = reduce(layer, p);
            p = Pass();
            p.contribution = std::move(contribution);
            seen.insert(layer);
        }
    }

    // Whether this node holds the weighted outputs of a layer whose weights were not compared yet
    bool compares(const ggml_tensor * t) {
        const int layer = layer_of(t->name, "ffn_moe_weighted");
        return layer >= 0 && compared.count(layer) == 0 && !pass[layer].contribution.empty() && size_t(t->ne[0]) == job.hidden;
    }

    void compare(const ggml_tensor * t, int layer) {
        const std::vector<float> rows = values_of(t);
        const std::vector<double> & want = pass[layer].contribution;
        for (size_t pair = 0; pair < want.size(); ++pair) {
            double square = 0;
            for (size_t h = 0; h < job.hidden; ++h) {
                square += double(rows[pair * job.hidden + h]) * double(rows[pair * job.hidden + h]);
            }
            if (std::isfinite(want[pair]) && std::fabs(std::sqrt(square) - std::fabs(want[pair])) > 1e-3 * std::fabs(want[pair]) + 1e-9) {
                throw std::runtime_error("the graph weights the experts of layer " + std::to_string(layer) + " in a way that is not known");
            }
        }
        compared.insert(layer);
    }

    // Adds the layer's pairs to the sums; returns w |o| of each pair, NaN for those that do not count
    std::vector<double> reduce(int layer, const Pass & p) {
        if (layer < 0 || size_t(layer) >= job.layers) {
            throw std::runtime_error("the graph has a layer " + std::to_string(layer));
        }
        const std::vector<int32_t> ids = numbers_of(p.product->src[2]);
        const size_t k = size_t(p.product->src[2]->ne[0]);
        const size_t here = ids.size() / k;
        if (here != count) {
            throw std::runtime_error("layer " + std::to_string(layer) + " sees " + std::to_string(here) + " of " + std::to_string(count) + " tokens");
        }
        if (!p.weighted_before && p.weights.size() != ids.size()) {
            throw std::runtime_error("the router's weights of layer " + std::to_string(layer) + " were not found");
        }
        const std::vector<float> out = values_of(p.output);
        const size_t hidden = job.hidden;
        if (out.size() != ids.size() * hidden) {
            throw std::runtime_error("an expert's output in layer " + std::to_string(layer) + " has another width");
        }
        const auto entering = layer_input.find(layer);
        std::vector<double> contributions(ids.size(), NAN);
        for (size_t token = 0; token < here; ++token) {
            const size_t place = first + token;
            if (!counted[place]) {
                continue;
            }
            const Window & window = job.windows[size_t(windows[size_t(owner[place])])];
            const size_t category = size_t(window.category);
            const size_t row = category * job.layers + size_t(layer);  // of [class, layer]
            const bool sane = (p.sane.empty() || p.sane[token]) && (entering == layer_input.end() || entering->second[token]);
            if (!sane) {
                state.masked[row] += 1;
                continue;
            }
            const size_t whole = size_t(owner[place]) * slots() * job.layers + size_t(layer);
            const size_t part = whole + size_t(kind[place] + 1) * job.layers;
            used[whole] += 1;
            if (part != whole) {
                used[part] += 1;
            }
            const bool neurons_count = kind[place] < 0 || kind[place] != job.prompt || !job.answered.at(category);
            for (size_t i = 0; i < k; ++i) {
                const size_t pair = token * k + i;
                const size_t expert = size_t(ids[pair]);
                if (expert >= job.experts) {
                    throw std::runtime_error("layer " + std::to_string(layer) + " has an expert " + std::to_string(expert));
                }
                const float * o = &out[pair * hidden];
                double square = 0;
                for (size_t h = 0; h < hidden; ++h) {
                    square += double(o[h]) * double(o[h]);
                }
                const double norm = float(std::sqrt(square));
                double w = p.weighted_before ? 1.0 : double(p.weights[pair]);
                if (job.scale == "weight") {
                    w = double(float(w * double(p.scale[pair])));
                }
                if (!std::isfinite(norm) || !std::isfinite(w)) {
                    state.masked[job.classes * job.layers + row] += 1;
                    continue;
                }
                const double contribution = contributions[pair] = w * norm;
                cells[whole * job.experts + expert].add(w, norm);
                if (part != whole) {
                    cells[part * job.experts + expert].add(w, norm);
                }
                const size_t at = row * job.experts + expert;
                const size_t all = job.classes * job.layers * job.experts;
                state.maxima[at] = std::max(state.maxima[at], contribution);
                state.maxima[all + at] = std::max(state.maxima[all + at], norm);
                add(&state.vectors[at * hidden], o, hidden, window.weight);
                if (job.neurons) {
                    const float * activation = &p.activation[pair * job.inner];
                    add_squares(&state.neurons[at * job.inner], activation, window.weight);
                    add_squares(&state.weighted[at * job.inner], activation, neurons_count ? window.weight * w * w : 0.0);
                }
                if (job.coactivation) {
                    for (size_t j = 0; j < k; ++j) {
                        state.pairs[at * job.experts + size_t(ids[token * k + j])] += window.weight;
                    }
                }
            }
            add_logits(&cells[whole * job.experts], p, token, k);
        }
        return contributions;
    }

    static void add(double * into, const float * from, size_t width, double weight) {
        for (size_t i = 0; i < width; ++i) {
            into[i] += weight * double(from[i]);
        }
    }

    void add_squares(double * into, const float * from, double weight) const {
        for (size_t i = 0; i < job.inner; ++i) {
            into[i] += weight * double(from[i]) * double(from[i]);
        }
    }

    void add_logits(Cell * mine, const Pass & p, size_t token, size_t k) const {
        if (p.logits.size() != count * job.experts) {
            return;
        }
        const float * logits = &p.logits[token * job.experts];
        if (!std::all_of(logits, logits + job.experts, [](float v) { return std::isfinite(v); })) {
            return;
        }
        for (size_t expert = 0; expert < job.experts; ++expert) {
            mine[expert].logit += double(logits[expert]);
            mine[expert].logit_sq += double(logits[expert]) * double(logits[expert]);
        }
        if (p.ranking.size() == count * job.experts && k < job.experts) {
            mine[p.ranking[token * job.experts + k]].runner += 1;
        }
    }

    void fold(const Window & window, const Cell * mine, const double * tokens_used, size_t slot) {
        const size_t plane = job.layers * job.experts;
        const size_t stride = job.classes * job.shards * plane;  // from field to field
        const size_t base = (size_t(window.category) * job.shards + size_t(window.shard)) * plane;
        const size_t fields = slot == 0 ? size_t(FIELDS) : size_t(BY_KIND);
        const size_t first_field = slot == 0 ? 0 : FIELDS + (slot - 1) * BY_KIND;
        for (size_t at = 0; at < plane; ++at) {
            const Cell & c = mine[at];
            const double rows[FIELDS] = {
                c.n, 0, std::sqrt(c.weighted_sq), std::sqrt(c.norm_sq), c.weighted_sq, c.norm_sq,
                c.n > 0 ? c.weight / c.n : 0, c.weight, c.weighted, c.weighted_norm, c.norm, tokens_used[at / job.experts],
                c.runner, c.logit, c.logit_sq,
            };
            for (size_t field = 0; field < fields; ++field) {
                state.sums[(first_field + field) * stride + base + at] += window.weight * rows[field];
            }
            state.sums[(first_field + CC) * stride + base + at] += c.n > 0;
            if (slot == 0) {
                state.routed[size_t(window.category) * plane + at] += c.n;
            }
        }
    }
};

bool on_node(ggml_tensor * tensor, bool ask, void * data) {
    Recorder & recorder = *static_cast<Recorder *>(data);
    if (ask) {
        return recorder.wants(tensor);
    }
    try {
        recorder.see(tensor);
    } catch (const std::exception & problem) {
        recorder.error = problem.what();
        return false;
    }
    return true;
}

llama_model * load(const std::string & path, bool vocabulary_only) {
    llama_model_params settings = llama_model_default_params();
    settings.n_gpu_layers = 0;
    settings.load_mode = LLAMA_LOAD_MODE_MMAP;
    settings.use_extra_bufts = false;     // repacked weights would be a second copy in memory
    settings.vocab_only = vocabulary_only;
    llama_model * model = llama_model_load_from_file(path.c_str(), settings);
    if (model == nullptr) {
        throw std::runtime_error("llama.cpp cannot load " + path);
    }
    return model;
}

// A context for `sequences` sequences of `length` tokens, decoded at most `most` tokens at a time
llama_context * context_of(llama_model * model, int length, int sequences, int most, int threads, Recorder * recorder) {
    llama_context_params settings = llama_context_default_params();
    settings.n_ctx = uint32_t(length) * uint32_t(sequences);
    settings.n_batch = settings.n_ubatch = std::min(settings.n_ctx, uint32_t(most));
    settings.n_seq_max = uint32_t(sequences);
    settings.n_threads = settings.n_threads_batch = threads;
    settings.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    settings.type_k = settings.type_v = GGML_TYPE_F32;
    settings.offload_kqv = settings.op_offload = false;
    settings.no_perf = true;
    settings.swa_full = true;
    settings.kv_unified = sequences == 1;
    if (recorder != nullptr) {
        settings.cb_eval = on_node;
        settings.cb_eval_user_data = recorder;
    }
    llama_context * context = llama_init_from_model(model, settings);
    if (context == nullptr) {
        throw std::runtime_error("llama.cpp cannot create a context of " + std::to_string(length * sequences) + " tokens");
    }
    return context;
}

// Sequences of `length` tokens each, one after the other, whose positions begin at `start`
void decode(llama_context * context, const llama_token * tokens, int count, int start, int length, bool all) {
    llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = start + i % length;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = i / length;
        batch.logits[i] = all || i + 1 == count;
    }
    const int status = llama_decode(context, batch);
    llama_batch_free(batch);
    if (status != 0) {
        throw std::runtime_error("llama_decode failed with " + std::to_string(status));
    }
}

// Decode what the recorder expects. A single window may be longer than `most` and is then sent in parts.
void run(llama_context * context, Recorder & recorder, int most, int length) {
    const std::vector<llama_token> & tokens = recorder.sent();
    const int total = int(tokens.size());
    try {
        for (int at = 0; at < total; at += most) {
            const int count = std::min(most, total - at);
            // All positions are outputs: otherwise the last layer would see the last position only.
            decode(context, tokens.data() + at, count, at, total == length ? count : length, true);
        }
    } catch (const std::exception &) {
        if (recorder.error.empty()) {
            throw;
        }
    }
    if (!recorder.error.empty()) {
        throw std::runtime_error(recorder.error);
    }
}

// Resident bytes that are not pages of a file; 0 where the kernel does not say (not Linux)
size_t anonymous_memory() {
    std::ifstream file("/proc/self/status");
    std::string line;
    while (std::getline(file, line)) {
        if (line.rfind("RssAnon:", 0) == 0) {
            return size_t(std::strtoull(line.c_str() + 8, nullptr, 10)) * 1024;
        }
    }
    return 0;
}

void measure(const std::string & path, const Job & job, const std::string & state_path) {
    State state(job);
    state.load(state_path, job);
    Recorder recorder(job, state);
    llama_model * model = load(path, false);
    if (llama_model_is_diffusion(model)) {
        throw std::runtime_error("a diffusion model reads a text in both directions and in many steps, which is not measured");
    }
    llama_context * context = nullptr;
    int length = 0, sequences = 0;
    size_t peak = 0;
    auto saved = std::chrono::steady_clock::now();
    while (state.done < job.batches.size()) {
        const auto & [padded, chosen] = job.batches[state.done];
        const int most = std::min<int>(SEQUENCES, int(chosen.size()));
        if (context == nullptr || length != padded || sequences < most) {
            llama_free(context);
            length = padded;
            sequences = most;
            context = context_of(model, length, sequences, job.batch_tokens, job.threads, &recorder);
        }
        for (size_t at = 0; at < chosen.size(); at += size_t(sequences)) {
            const auto from = chosen.begin() + long(at);
            const std::vector<int> part(from, chosen.begin() + long(std::min(chosen.size(), at + size_t(sequences))));
            recorder.begin(part, length);
            llama_memory_clear(llama_get_memory(context), true);
            run(context, recorder, part.size() == 1 ? job.batch_tokens : length * sequences, length);
            recorder.end();
        }
        peak = std::max(peak, anonymous_memory());
        state.done += 1;
        const auto now = std::chrono::steady_clock::now();
        if (state.done == job.batches.size() || std::chrono::duration<double>(now - saved).count() > job.save_seconds) {
            state.save(state_path, job);
            saved = std::chrono::steady_clock::now();
        }
        std::printf("%zu/%zu\n", state.done, job.batches.size());
        std::fflush(stdout);
    }
    const json result = {{"fields", NAMES}, {"ran", recorder.ran}, {"layers", recorder.seen}, {"peak_ram", peak}};
    std::printf("%s\n", result.dump().c_str());
    llama_free(context);
    llama_model_free(model);
}

std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & text, bool special) {
    std::vector<llama_token> tokens(text.size() + 8);
    int n = llama_tokenize(vocab, text.c_str(), int(text.size()), tokens.data(), int(tokens.size()), special, true);
    if (n < 0) {
        tokens.resize(size_t(-n));
        n = llama_tokenize(vocab, text.c_str(), int(text.size()), tokens.data(), int(tokens.size()), special, true);
    }
    tokens.resize(size_t(std::max(n, 0)));
    return tokens;
}

std::string detokenize(const llama_vocab * vocab, const std::vector<llama_token> & tokens, bool special) {
    std::string text(tokens.size() * 16 + 64, '\0');
    int n = llama_detokenize(vocab, tokens.data(), int(tokens.size()), text.data(), int(text.size()), false, special);
    if (n < 0) {
        text.resize(size_t(-n));
        n = llama_detokenize(vocab, tokens.data(), int(tokens.size()), text.data(), int(text.size()), false, special);
    }
    text.resize(size_t(std::max(n, 0)));
    return text;
}

void answer(const json & reply) {
    // A reply that was cut within a character is not UTF-8.
    std::cout << reply.dump(-1, ' ', true, json::error_handler_t::replace) << "\n" << std::flush;
}

void text(const std::string & path) {
    llama_model * model = load(path, true);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::string line;
    while (std::getline(std::cin, line)) {
        const json request = json::parse(line);
        if (request.contains("text")) {
            answer({{"tokens", tokenize(vocab, request["text"].get<std::string>(), request.at("special"))}});
        } else {
            answer({{"text", detokenize(vocab, request.at("tokens").get<std::vector<llama_token>>(), request.at("special"))}});
        }
    }
    llama_model_free(model);
}

void reply(const std::string & path, int length, int threads) {
    llama_model * model = load(path, false);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int vocabulary = llama_vocab_n_tokens(vocab);
    llama_context * context = context_of(model, length, 1, length, threads, nullptr);
    std::string line;
    while (std::getline(std::cin, line)) {
        const json request = json::parse(line);
        const auto stop = request.at("stop").get<std::set<llama_token>>();
        std::vector<llama_token> sent = request.at("tokens").get<std::vector<llama_token>>();
        std::vector<llama_token> made;
        bool stopped = false;
        llama_memory_clear(llama_get_memory(context), true);
        int start = 0;
        for (int step = 0; step < request.at("most").get<int>() && !stopped; ++step) {
            decode(context, sent.data(), int(sent.size()), start, int(sent.size()), false);
            start += int(sent.size());
            const float * logits = llama_get_logits_ith(context, -1);
            const llama_token next = llama_token(std::max_element(logits, logits + vocabulary) - logits);
            made.push_back(next);
            stopped = stop.count(next) > 0 || llama_vocab_is_eog(vocab, next);
            sent = {next};
        }
        answer({{"tokens", made}, {"stopped", stopped}});
    }
    llama_free(context);
    llama_model_free(model);
}

}  // namespace

int main(int argc, char ** argv) {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "--version") {
        std::printf("trimoe-expert-stats, %s\n", llama_print_system_info());
        return 0;
    }
    const std::map<std::string, int> modes = {{"measure", 5}, {"text", 3}, {"reply", 5}};
    if (modes.count(mode) == 0 || argc != modes.at(mode)) {
        std::fprintf(stderr, "usage: trimoe-expert-stats measure MODEL JOB.json STATE | text MODEL | reply MODEL CONTEXT THREADS\n");
        return 2;
    }
    try {
        llama_backend_init();
        if (mode == "measure") {
            std::ifstream file(argv[3]);
            measure(argv[2], Job(json::parse(file)), argv[4]);
        } else if (mode == "text") {
            text(argv[2]);
        } else {
            reply(argv[2], std::atoi(argv[3]), std::atoi(argv[4]));
        }
        llama_backend_free();
        return 0;
    } catch (const std::exception & problem) {
        std::fprintf(stderr, "error: %s\n", problem.what());
        return 1;
    }
}
