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
