"""What destroyed weights look like, in any file that keeps tensors as plain ranges of bytes.

Knows ranges (``regions``) and no format: GGUF and safetensors say where their tensors lie and get findings back.
"""
