#!/bin/sh
# lm-evaluation-harness against FaaSMoE: sh examples/lm_eval.sh MODEL_DIR TASK [OPTION ...]
# It needs `pip install 'lm_eval[api]' transformers`, and the checkpoint's folder for its tokenizer.
set -eu
model_dir=$1
task=$2
shift 2
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
model=$(basename "$model_dir")
exec lm_eval --model local-completions --tasks "$task" --model_args \
    "model=$model,base_url=$url/completions,tokenizer=$model_dir,num_concurrent=8" "$@"
