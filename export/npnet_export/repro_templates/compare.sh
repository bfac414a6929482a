#!/bin/sh
# Compare engines with float32 PyTorch, by Polygraphy: ./compare.sh onnxruntime|tensorrt|tensorrt-rtx|precision|reduce
# A graph agrees if the relative RMS error of each output is at most $relative ($decibels dB).
set -eu
cd "$$(dirname "$$0")"
WORK="$${WORK:-work}" # engines and logs
mkdir -p "$$WORK"

compare() { # a graph, then the runner and its options
    graph="$$1"
    shift
    polygraphy run "$$graph.onnx" "$$@" --load-inputs "$$graph.inputs.json" --load-outputs "$$graph.expected.json" \
        --compare snr --snr-threshold $decibels
}

each() { # the same for all graphs: one that fails does not stop the others
    status=0
    for name in $graphs; do
        compare "$$name" "$$@" || status=1
    done
    return "$$status"
}

check() { # what decides about an engine of `polygraphy debug`
    echo "polygraphy run $$2 --trt --model-type engine --load-inputs $$1.inputs.json" \
        "--load-outputs $$1.expected.json --compare snr --snr-threshold $decibels"
}

case "$${1:-}" in
onnxruntime) # PROVIDERS=cuda for a GPU; a CPU widens fp16 to float32, and has no bf16
    each --onnxrt --providers "$${PROVIDERS:-cpu}"
    ;;
tensorrt)
    each --trt
    ;;
tensorrt-rtx)
    POLYGRAPHY_USE_TENSORRT_RTX=1 each --trt
    ;;
precision) # which layers need float32: TensorRT 10 only, as later versions take types from the graph
    [ -n "$debug" ] || { echo "the graphs are float32 already" >&2; exit 2; }
    for name in $graphs; do
        polygraphy debug precision "$$name.float32.onnx" $debug --mode bisect --precision float32 \
            --art-dir "$$WORK/$$name" --check $$(check "$$name" polygraphy_debug.engine)
    done
    ;;
reduce) # the smallest part of a graph that still disagrees; GRAPH=name of one of: $graphs
    name="$${GRAPH:?set GRAPH to one of: $graphs}"
    polygraphy debug reduce "$$name.onnx" --mode bisect --output "$$WORK/$$name.reduced.onnx" \
        --load-inputs "$$name.inputs.json" --check polygraphy run polygraphy_debug.onnx --onnxrt --trt \
        --load-inputs "$$name.inputs.json" --compare snr --snr-threshold $decibels
    ;;
*)
    echo "usage: $$0 onnxruntime|tensorrt|tensorrt-rtx|precision|reduce" >&2
    exit 2
    ;;
esac
