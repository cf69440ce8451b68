"""LangChain's own tests of its models for OpenAI's and Anthropic's APIs, with this server behind them.

``tests/server/test_clients.py`` runs it in an environment that has LangChain. ``ATLAS_URL`` is a server with the sample
model, which cannot choose a tool; ``ATLAS_OBLIGING_URL`` one whose model always calls the right one.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from langchain_anthropic import ChatAnthropic
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

URL = os.environ["ATLAS_URL"]
OBLIGING = os.environ["ATLAS_OBLIGING_URL"]


class TestChatUnit(ChatModelUnitTests):
    """Without a request."""

    chat_model_class = ChatOpenAI
    chat_model_params: ClassVar = {"model": "any", "base_url": f"{URL}/v1", "api_key": "secret"}
    init_from_env_params = (
        {"OPENAI_API_KEY": "secret", "OPENAI_API_BASE": f"{URL}/v1"},
        {"model": "any"},
        {"openai_api_key": "secret", "openai_api_base": f"{URL}/v1"},
    )


class Chat(ChatModelIntegrationTests):
    """What this server can do beside what LangChain expects of every one."""

    __test__ = False
    supports_json_mode = True
    model_override_value = "another"
    url = URL
    more: ClassVar[dict[str, Any]] = {}

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        said = {"base_url": f"{self.url}/v1", "api_key": "secret", "stream_usage": True}
        # without it a model may call a tool as often as it likes, and this one does
        one = {"model_kwargs": {"parallel_tool_calls": False}}
        return {"model": "any", "temperature": 0, "max_tokens": 160, **said, **one, **self.more}


class TestChat(Chat):
    """``/v1/chat/completions``."""

    __test__ = True


class TestResponses(Chat):
    """``/v1/responses``."""

    __test__ = True
    more: ClassVar = {"use_responses_api": True}


class TestMessages(Chat):
    """``/v1/messages``."""

    __test__ = True
    supports_json_mode = False
    supports_anthropic_inputs = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        said = {"base_url": self.url, "api_key": "secret"}
        return {"model": "any", "temperature": 0, "max_tokens": 160, **said}


class TestObligingChat(TestChat):
    """Tools that the model chooses itself."""

    url = OBLIGING


class TestObligingResponses(TestResponses):
    """Tools that the model chooses itself."""

    url = OBLIGING


class TestObligingMessages(TestMessages):
    """Tools that the model chooses itself."""

    url = OBLIGING


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    """Without a request."""

    embeddings_class = OpenAIEmbeddings
    embedding_model_params: ClassVar = {"model": "any", "api_key": "secret", "base_url": f"{URL}/v1"}


class TestEmbeddings(EmbeddingsIntegrationTests):
    """``/v1/embeddings``; texts are sent, since this server's tokens are not OpenAI's."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        said = {"base_url": f"{URL}/v1", "api_key": "secret"}
        return {"model": "any", "check_embedding_ctx_length": False, **said}
