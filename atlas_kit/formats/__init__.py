"""The file formats, one subpackage each: ``tables`` (numbers), ``layout`` (bytes), ``file`` (behaviour)."""
