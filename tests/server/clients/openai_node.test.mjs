// OpenAI's client for Node.js, with this server behind it. ATLAS_URL is a server with the sample model, and
// ATLAS_OBLIGING_URL one whose model calls the tool that it is offered.
import assert from "node:assert/strict";
import test from "node:test";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const installed = createRequire(`${process.env.ATLAS_NODE}/package.json`);
const load = async (name) => import(pathToFileURL(installed.resolve(name)));
const { default: OpenAI } = await load("openai");

const connect = (url, more = {}) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: "secret", maxRetries: 0, ...more });
const model = connect(process.env.ATLAS_URL);
const obliging = connect(process.env.ATLAS_OBLIGING_URL);
const messages = [{ role: "user", content: "Hi" }];
const parameters = { type: "object", properties: { input: { type: "integer" } }, required: ["input"] };
const call = { name: "magic_function", description: "Applies a magic function.", parameters };

test("a chat, whole and as it comes", async () => {
  const found = await obliging.chat.completions.create({ model: "any", messages });
  assert.equal(found.choices[0].message.content, "It is so.");
  assert.equal(found.usage.completion_tokens, 9);
  const stream = await obliging.chat.completions.create({
    model: "any", messages, stream: true, stream_options: { include_usage: true },
  });
  let text = "", usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, "It is so.");
  assert.equal(usage.completion_tokens, 9);
});

test("the helper for streams", async () => {
  const runner = obliging.chat.completions.stream({ model: "any", messages });
  let said = "";
  runner.on("content", (delta) => { said += delta; });
  assert.equal(await runner.finalContent(), "It is so.");
  assert.equal(said, "It is so.");
});

for (const stream of [false, true]) {
  test(`tools that the client runs${stream ? ", streamed" : ""}`, async () => {
    const asked = [];
    const run = ({ input }) => { asked.push(input); return String(input + 2); };
    const runner = obliging.chat.completions.runTools({
      model: "any", messages, stream,
      tools: [{ type: "function", function: { ...call, parse: JSON.parse, function: run } }],
    });
    assert.equal(await runner.finalContent(), "It is so.");
    assert.deepEqual(asked, [3]);
    assert.deepEqual(runner.messages.map((one) => one.role), ["user", "assistant", "tool", "assistant"]);
  });
}

test("an answer in a form", async () => {
  const schema = {
    type: "object", properties: { n: { enum: [7] } }, required: ["n"], additionalProperties: false,
  };
  const found = await model.chat.completions.parse({
    model: "any", messages, max_tokens: 60,
    response_format: { type: "json_schema", json_schema: { name: "n", schema, strict: true } },
  });
  assert.deepEqual(JSON.parse(found.choices[0].message.content), { n: 7 });
});

test("responses: text, events, tools, and what goes on", async () => {
  const first = await obliging.responses.create({ model: "any", input: "Hi" });
  assert.equal(first.output_text, "It is so.");
  const stream = obliging.responses.stream({ model: "any", input: "More", previous_response_id: first.id });
  const kinds = new Set();
  for await (const event of stream) kinds.add(event.type);
  assert.ok(kinds.has("response.output_text.delta") && kinds.has("response.completed"));
  const last = await stream.finalResponse();
  assert.equal(last.output_text, "It is so.");
  assert.ok(last.usage.input_tokens_details.cached_tokens > 0);
  assert.equal((await obliging.responses.retrieve(last.id)).output_text, "It is so.");
  const items = [];
  for await (const item of obliging.responses.inputItems.list(last.id)) items.push(item);
  assert.equal(items[0].content[0].text, "More");
  const tools = [{ type: "function", strict: true, ...call }];
  const chosen = await obliging.responses.create({ model: "any", input: "Hi", tools });
  const [made] = chosen.output.filter((one) => one.type === "function_call");
  assert.deepEqual(JSON.parse(made.arguments), { input: 3 });
  const result = [{ type: "function_call_output", call_id: made.call_id, output: "5" }];
  const told = { model: "any", input: result, tools, previous_response_id: chosen.id };
  assert.equal((await obliging.responses.create(told)).output_text, "It is so.");
});

test("conversations", async () => {
  const begun = await obliging.conversations.create({ metadata: { topic: "x" } });
  await obliging.responses.create({ model: "any", input: "Hi", conversation: begun.id });
  const roles = [];
  for await (const item of obliging.conversations.items.list(begun.id, { order: "asc" })) roles.push(item.role);
  assert.deepEqual(roles, ["user", "assistant"]);
  assert.equal((await obliging.conversations.delete(begun.id)).deleted, true);
});

test("texts, vectors and models", async () => {
  const found = await model.completions.create({ model: "any", prompt: "def", max_tokens: 4, logprobs: 2 });
  assert.equal(found.choices[0].logprobs.tokens.length, 4);
  const floats = await model.embeddings.create({ model: "any", input: "a", encoding_format: "float" });
  const packed = await model.embeddings.create({ model: "any", input: "a" });
  assert.equal(packed.data[0].embedding.length, floats.data[0].embedding.length);
  packed.data[0].embedding.forEach((one, at) => assert.ok(Math.abs(one - floats.data[0].embedding[at]) < 1e-6));
  const [one] = (await model.models.list()).data;
  assert.equal((await model.models.retrieve(one.id)).id, one.id);
});

test("an answer that is no longer wanted", async () => {
  const stream = await model.chat.completions.create({ model: "any", messages, stream: true, max_tokens: 1500 });
  for await (const _ of stream) { stream.controller.abort(); break; }
  const found = await model.chat.completions.create({ model: "any", messages, max_tokens: 1 });
  assert.equal(found.usage.completion_tokens, 1);
});

test("errors have their classes", async () => {
  const asked = { model: "any", messages };
  await assert.rejects(
    model.chat.completions.create({ ...asked, temperature: -1 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
  );
  await assert.rejects(
    model.chat.completions.create({ ...asked, messages: [{ role: "user", content: "many words ".repeat(20000) }] }),
    (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
  );
  await assert.rejects(model.models.retrieve("unknown"), OpenAI.NotFoundError);
  await assert.rejects(
    connect(process.env.ATLAS_URL, { apiKey: "wrong" }).chat.completions.create(asked),
    OpenAI.AuthenticationError,
  );
});
