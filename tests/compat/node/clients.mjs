// The official Node SDK against a running server. Each check prints a line; the first that fails
// ends the script with its stack.
import assert from "node:assert/strict";
import OpenAI from "openai";

const baseURL = process.env.MILLRACE_URL;
const apiKey = process.env.MILLRACE_API_KEY;
const client = new OpenAI({ baseURL, apiKey });

const model = "demo";
const messages = [{ role: "user", content: "What is a service tier?" }];
const brief = { model, messages, temperature: 0, max_tokens: 24 };
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather of a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 40 } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};
const askWeather = {
  model,
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
  tools: [weather],
  tool_choice: "required",
  temperature: 0,
  max_tokens: 80,
};

const checks = {
  async "an answer is created"() {
    const answer = await client.chat.completions.create(brief);
    assert.match(answer.choices[0].message.content, /priority/);
    assert.equal(answer.object, "chat.completion");
    assert.ok(answer._request_id);
  },

  async "a stream says what the answer says"() {
    const answer = await client.chat.completions.create(brief);
    const stream = await client.chat.completions.create({
      ...brief,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let last;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      last = chunk;
    }
    assert.equal(text, answer.choices[0].message.content);
    assert.deepEqual(last.choices, []);
    assert.equal(last.usage.completion_tokens, answer.usage.completion_tokens);
  },

  async "a tool is called"() {
    const answer = await client.chat.completions.create(askWeather);
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  },

  async "the stream helper puts a call together"() {
    const runner = client.chat.completions.stream(askWeather);
    const message = await runner.finalMessage();
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Paris" });
  },

  async "a completion is created and streamed"() {
    const request = { model, prompt: "A service tier is", max_tokens: 8, temperature: 0 };
    const whole = await client.completions.create(request);
    let text = "";
    for await (const chunk of await client.completions.create({ ...request, stream: true })) {
      text += chunk.choices[0].text;
    }
    assert.equal(text, whole.choices[0].text);
  },

  async "a response is created, streamed and gone on from"() {
    const request = { model, input: messages[0].content, temperature: 0, max_output_tokens: 24 };
    const whole = await client.responses.create(request);
    const runner = client.responses.stream(request);
    const kinds = [];
    for await (const event of runner) kinds.push(event.type);
    const last = await runner.finalResponse();
    assert.match(whole.output_text, /priority/);
    assert.equal(last.output_text, whole.output_text);
    assert.deepEqual(kinds.slice(0, 3), [
      "response.created",
      "response.queued",
      "response.in_progress",
    ]);
    const next = await client.responses.create({
      ...request,
      input: "And what is a lane?",
      previous_response_id: whole.id,
    });
    assert.ok(next.usage.input_tokens > whole.usage.input_tokens);
    const items = await client.responses.inputItems.list(next.id);
    assert.equal(items.data.length, 1);
    assert.ok((await client.responses.inputTokens.count(request)).input_tokens > 0);
  },

  async "a background response is polled, resumed, cancelled and deleted"() {
    const request = { model, input: "Tell me all of it.", max_output_tokens: 16, background: true };
    const started = await client.responses.create({ ...request, stream: true });
    let id;
    let seen = 0;
    for await (const event of started) {
      id ??= event.response?.id;
      if (++seen === 3) break; // the client is gone; the response isn't
    }
    const rest = [];
    const resumed = await client.responses.retrieve(id, { stream: true, starting_after: 2 });
    for await (const event of resumed) rest.push(event);
    assert.deepEqual(
      rest.map((event) => event.sequence_number),
      rest.map((_, place) => place + 3),
    );
    const polled = await until(
      () => client.responses.retrieve(id),
      (response) => !["queued", "in_progress"].includes(response.status),
    );
    assert.deepEqual(rest.at(-1).response.output, polled.output);
    await client.responses.delete(id);
    await assert.rejects(client.responses.retrieve(id), OpenAI.NotFoundError);
    const endless = { ...request, max_output_tokens: 400, ignore_eos: true };
    const long = await client.responses.create(endless);
    const ended = await until(
      () => client.responses.cancel(long.id),
      (response) => response.status !== "queued" && response.status !== "in_progress",
    );
    assert.equal(ended.status, "cancelled");
  },

  async "a batch runs to its output"() {
    const url = "/v1/chat/completions";
    const lines = ["a", "b"].map((custom_id) =>
      JSON.stringify({ custom_id, method: "POST", url, body: { ...brief, max_tokens: 4 } }),
    );
    const file = await client.files.create({
      file: new File([lines.join("\n")], "in.jsonl"),
      purpose: "batch",
    });
    const batch = await client.batches.create({
      input_file_id: file.id,
      endpoint: url,
      completion_window: "24h",
    });
    const ended = await until(
      () => client.batches.retrieve(batch.id),
      (each) => each.status === "completed",
    );
    assert.deepEqual(ended.request_counts, { total: 2, completed: 2, failed: 0 });
    const output = await (await client.files.content(ended.output_file_id)).text();
    const ids = output.trim().split("\n").map((line) => JSON.parse(line).custom_id);
    assert.deepEqual(ids.sort(), ["a", "b"]);
    assert.equal((await client.batches.cancel(batch.id)).status, "completed");
    const listed = await client.batches.list({ limit: 1 });
    assert.equal(listed.data[0].id, batch.id);
  },

  async "webhook endpoints are made, changed and deleted"() {
    const made = await client.webhooks.create({
      name: "mine",
      url: "https://example.com/hook",
      event_types: ["response.completed"],
    });
    assert.match(made.signing_secret, /^whsec_/);
    const changed = await client.webhooks.update(made.id, { event_types: ["batch.failed"] });
    assert.deepEqual(changed.event_types, ["batch.failed"]);
    const rotated = await client.webhooks.rotateSecret(made.id);
    assert.notEqual(rotated.signing_secret, made.signing_secret);
    const ids = [];
    for await (const each of client.webhooks.list()) ids.push(each.id);
    assert.ok(ids.includes(made.id));
    assert.equal((await client.webhooks.delete(made.id)).deleted, true);
  },

  async "models are listed"() {
    const names = [];
    for await (const each of client.models.list()) names.push(each.id);
    assert.ok(names.includes("demo"));
  },

  async "a file goes up and down"() {
    const content = '{"custom_id": "a"}\n';
    const file = await client.files.create({
      file: new File([content], "in.jsonl"),
      purpose: "batch",
    });
    assert.equal(await (await client.files.content(file.id)).text(), content);
    assert.equal((await client.files.delete(file.id)).deleted, true);
  },

  async "errors have their classes"() {
    const wrongKey = new OpenAI({ baseURL, apiKey: "mlr_live_wrong" });
    await assert.rejects(wrongKey.chat.completions.create(brief), OpenAI.AuthenticationError);
    await assert.rejects(
      client.chat.completions.create({ ...brief, model: "gpt-nowhere" }),
      OpenAI.NotFoundError,
    );
    await assert.rejects(client.chat.completions.create({ ...brief, temperature: 3 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "temperature");
      assert.equal(error.code, "invalid_request");
      return true;
    });
  },

  async "no credit is told once"() {
    const seen = [];
    const poor = spying(seen, process.env.MILLRACE_POOR_KEY);
    await assert.rejects(poor.chat.completions.create(brief), (error) => {
      assert.ok(error instanceof OpenAI.RateLimitError);
      assert.equal(error.code, "insufficient_quota");
      return true;
    });
    assert.equal(seen.length, 1);
  },

  async "a retry gets the first try's job"() {
    const seen = [];
    const retrying = spying(seen, apiKey, 503);
    const answer = await retrying.chat.completions.create({ ...brief, seed: 5 });
    assert.match(answer.choices[0].message.content, /priority/);
    assert.deepEqual(seen.map((each) => each.retry), ["0", "1"]);
    assert.equal(seen[0].job, seen[1].job);
    assert.ok(seen[0].job);
  },

  async "leaving a stream is no error"() {
    const stream = await client.chat.completions.create({ ...brief, stream: true });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      break;
    }
    assert.ok(stream.controller.signal.aborted);
  },
};

// What `ask` gives once it is as wanted.
async function until(ask, isWanted) {
  for (let tries = 0; tries < 300; tries++) {
    const answer = await ask();
    if (isWanted(answer)) return answer;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("it never came to that");
}

// A client whose exchanges are noted, and whose first answer may be spoilt on the way.
function spying(seen, key, spoilt) {
  return new OpenAI({
    baseURL,
    apiKey: key,
    fetch: async (url, init) => {
      const answer = await fetch(url, init);
      const retry = new Headers(init.headers).get("x-stainless-retry-count");
      seen.push({ retry, job: answer.headers.get("x-millrace-job-id") });
      return spoilt && seen.length === 1 ? new Response("gone", { status: spoilt }) : answer;
    },
  });
}

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok: ${name}`);
  } catch (error) {
    console.error(`FAILED: ${name}\n${error.stack}`);
    process.exit(1);
  }
}
console.log(`all ${Object.keys(checks).length} passed`);
