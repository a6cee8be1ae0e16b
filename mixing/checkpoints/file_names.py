"""Names of the files in a checkpoint's or an adapter's folder, as transformers and PEFT write them.

Source: transformers.utils (CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME,
SAFE_WEIGHTS_INDEX_NAME), peft.utils (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME).
"""

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
PARAMETERS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""The file that says in which file of a checkpoint in parts each tensor is."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_PARAMETERS = "adapter_model.safetensors"
TOKENIZER = "tokenizer.json"
