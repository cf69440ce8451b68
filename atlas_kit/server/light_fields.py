"""What the first requests may hold, from the schemas: types and ranges, as JSON schemas have them. Generated.

``python -m tools.light_fields`` writes it.
"""

from __future__ import annotations

from typing import Any

# fmt: off
# ruff: noqa: E501
#: Of every request.
SHARED: dict[str, Any] = {
    'ignore_eos': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
    'typical_p': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 1}, {'type': 'null'}]},
    'top_n_sigma': {'anyOf': [{'type': 'number', 'minimum': -1, 'maximum': 100}, {'type': 'null'}]},
    'xtc_probability': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 1}, {'type': 'null'}]},
    'xtc_threshold': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 1}, {'type': 'null'}]},
    'dynatemp_range': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 100}, {'type': 'null'}]},
    'dynatemp_exponent': {'anyOf': [{'type': 'number', 'minimum': 0.01, 'maximum': 100}, {'type': 'null'}]},
    'dry_multiplier': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 100}, {'type': 'null'}]},
    'dry_base': {'anyOf': [{'type': 'number', 'minimum': 1, 'maximum': 100}, {'type': 'null'}]},
    'dry_allowed_length': {'anyOf': [{'type': 'integer', 'minimum': 0, 'maximum': 1048576}, {'type': 'null'}]},
    'dry_penalty_last_n': {'anyOf': [{'type': 'integer', 'minimum': -1, 'maximum': 65536}, {'type': 'null'}]},
    'dry_sequence_breakers': {'anyOf': [{'type': 'array', 'minItems': 1, 'maxItems': 16, 'items': {'type': 'string'}}, {'type': 'null'}]},
    'mirostat': {'anyOf': [{'type': 'integer', 'minimum': 0, 'maximum': 2}, {'type': 'null'}]},
    'mirostat_tau': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 100}, {'type': 'null'}]},
    'mirostat_eta': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 1}, {'type': 'null'}]},
    'adaptive_target': {'anyOf': [{'type': 'number', 'minimum': -1, 'maximum': 1}, {'type': 'null'}]},
    'adaptive_decay': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 0.99}, {'type': 'null'}]},
    'min_keep': {'anyOf': [{'type': 'integer', 'minimum': 0, 'maximum': 1048576}, {'type': 'null'}]},
    'model': {'anyOf': [{'type': 'string'}, {'type': 'null'}]},
    'max_tokens': {'anyOf': [{'type': 'integer', 'minimum': -1, 'maximum': 16777216}, {'type': 'null'}]},
    'n_predict': {'anyOf': [{'type': 'integer', 'minimum': -1, 'maximum': 16777216}, {'type': 'null'}]},
    'temperature': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 100}, {'type': 'null'}]},
    'top_p': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 1}, {'type': 'null'}]},
    'top_k': {'anyOf': [{'type': 'integer', 'minimum': -1, 'maximum': 16777216}, {'type': 'null'}]},
    'min_p': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 1}, {'type': 'null'}]},
    'seed': {'anyOf': [{'type': 'integer', 'minimum': -9223372036854775808, 'exclusiveMaximum': 9223372036854775808}, {'type': 'null'}]},
    'presence_penalty': {'anyOf': [{'type': 'number', 'minimum': -100, 'maximum': 100}, {'type': 'null'}]},
    'frequency_penalty': {'anyOf': [{'type': 'number', 'minimum': -100, 'maximum': 100}, {'type': 'null'}]},
    'repeat_penalty': {'anyOf': [{'type': 'number', 'minimum': 0.01, 'maximum': 100}, {'type': 'null'}]},
    'repeat_last_n': {'anyOf': [{'type': 'integer', 'minimum': -1, 'maximum': 1048576}, {'type': 'null'}]},
    'logit_bias': {'anyOf': [{'type': 'object', 'additionalProperties': True}, {'type': 'array', 'items': {}}, {'type': 'null'}]},
    'stop': {'anyOf': [{'type': 'string'}, {'type': 'array', 'items': {'type': 'string'}}, {'type': 'null'}]},
    'stream': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
    'stream_options': {'anyOf': [{'type': 'object', 'additionalProperties': True, 'properties': {'include_usage': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]}}}, {'type': 'null'}]},
    'n': {'anyOf': [{'type': 'integer', 'minimum': 1, 'maximum': 16}, {'type': 'null'}]},
    'n_cmpl': {'anyOf': [{'type': 'integer', 'minimum': 1, 'maximum': 16}, {'type': 'null'}]},
    'user': {'anyOf': [{'type': 'string'}, {'type': 'null'}]},
    'grammar': {'anyOf': [{'type': 'string', 'maxLength': 65536}, {'type': 'null'}]},
    'json_schema': {'anyOf': [{'type': 'object', 'additionalProperties': True}, {'type': 'null'}]},
    'timings_per_token': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
    'return_progress': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
    'sse_ping_interval': {'anyOf': [{'type': 'integer', 'minimum': -1, 'maximum': 2147483648}, {'type': 'null'}]},
    'verbose': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
    'atlas': {'anyOf': [{'type': 'object', 'additionalProperties': True, 'properties': {'enabled': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]}, 'session_id': {'anyOf': [{'type': 'string', 'minLength': 1, 'maxLength': 128}, {'type': 'null'}]}, 'window_size': {'anyOf': [{'type': 'integer', 'minimum': 64, 'maximum': 8192}, {'type': 'null'}]}, 'blend_ratio': {'anyOf': [{'type': 'number', 'minimum': 0, 'maximum': 1}, {'type': 'null'}]}, 'learning_rate': {'anyOf': [{'type': 'number', 'maximum': 0.1, 'exclusiveMinimum': 0}, {'type': 'null'}]}, 'polynomial_degree': {'anyOf': [{'type': 'integer', 'minimum': 1, 'maximum': 3}, {'type': 'null'}]}, 'use_muon': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]}, 'warmup_tokens': {'anyOf': [{'type': 'integer', 'minimum': 0, 'maximum': 16777216}, {'type': 'null'}]}, 'recall': {'anyOf': [{'type': 'string', 'enum': ['auto', 'off', 'always']}, {'type': 'null'}]}, 'recall_segments': {'anyOf': [{'type': 'integer', 'minimum': 1, 'maximum': 16}, {'type': 'null'}]}, 'recall_gate': {'anyOf': [{'type': 'number', 'minimum': -100, 'maximum': 100}, {'type': 'null'}]}, 'source': {'anyOf': [{'type': 'string', 'maxLength': 255}, {'type': 'null'}]}, 'replaces': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]}, 'memory_file': {'anyOf': [{'type': 'string', 'minLength': 1, 'maxLength': 255}, {'type': 'null'}]}, 'save_memory': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]}}}, {'type': 'null'}]},
}
FIELDS: dict[str, dict[str, Any]] = {
    'CompletionRequest': {
        'type': 'object',
        'additionalProperties': True,
        'properties': {
            **SHARED,
            'prompt': {'anyOf': [{'type': 'string'}, {'type': 'array', 'items': {'type': 'integer'}}, {'type': 'array', 'items': {'type': 'string'}}, {'type': 'array', 'items': {'type': 'array', 'items': {'type': 'integer'}}}, {'type': 'array', 'items': {'anyOf': [{'type': 'integer'}, {'type': 'string'}, {'type': 'array', 'items': {'anyOf': [{'type': 'integer'}, {'type': 'string'}]}}]}}]},
            'echo': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
            'logprobs': {'anyOf': [{'type': 'integer', 'minimum': 0, 'maximum': 20}, {'type': 'null'}]},
            'suffix': {'anyOf': [{'type': 'string'}, {'type': 'null'}]},
            'best_of': {'anyOf': [{'type': 'integer', 'minimum': 0, 'maximum': 16}, {'type': 'null'}]},
        },
        'required': ['prompt'],
    },
    'ChatRequest': {
        'type': 'object',
        'additionalProperties': True,
        'properties': {
            **SHARED,
            'messages': {'type': 'array', 'minItems': 1, 'maxItems': 10000, 'items': {'type': 'object', 'additionalProperties': True, 'properties': {'role': {'type': 'string', 'minLength': 1, 'maxLength': 32}, 'content': {'anyOf': [{'type': 'string'}, {'type': 'array', 'items': {'type': 'object', 'additionalProperties': True}}, {'type': 'null'}]}}, 'required': ['role']}},
            'max_completion_tokens': {'anyOf': [{'type': 'integer', 'minimum': -1, 'maximum': 16777216}, {'type': 'null'}]},
            'logprobs': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
            'top_logprobs': {'anyOf': [{'type': 'integer', 'minimum': 0, 'maximum': 20}, {'type': 'null'}]},
            'tools': {'anyOf': [{'type': 'array', 'maxItems': 128, 'items': {'type': 'object', 'additionalProperties': True}}, {'type': 'null'}]},
            'tool_choice': {'anyOf': [{'type': 'string'}, {'type': 'object', 'additionalProperties': True}, {'type': 'null'}]},
            'parallel_tool_calls': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
            'reasoning_effort': {'anyOf': [{'type': 'string', 'maxLength': 32}, {'type': 'null'}]},
            'reasoning_format': {'anyOf': [{'type': 'string', 'enum': ['none', 'auto', 'deepseek', 'deepseek-legacy']}, {'type': 'null'}]},
            'thinking_budget': {'anyOf': [{'type': 'integer', 'minimum': -1, 'maximum': 16777216}, {'type': 'null'}]},
            'chat_template_kwargs': {'anyOf': [{'type': 'object', 'additionalProperties': True}, {'type': 'null'}]},
            'add_generation_prompt': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
            'continue_final_message': {'anyOf': [{'type': 'boolean'}, {'type': 'null'}]},
        },
        'required': ['messages'],
    },
}
