// The Vercel AI SDK with its provider for servers like OpenAI's, which speaks chat and text
// completions: answers, streams, tools over several turns, objects, and errors. Run by
// tests/compat/test_node.py for each of its majors: MILLRACE_AI and MILLRACE_AI_PROVIDER name the
// packages.

import assert from "node:assert/strict";

import { z } from "zod";

const ai = await import(process.env.MILLRACE_AI);
const { generateText, streamText, tool, Output, stepCountIs, isStepCount, APICallError } = ai;
const { createOpenAICompatible } = await import(process.env.MILLRACE_AI_PROVIDER);

const settings = {
  name: "millrace",
  baseURL: process.env.MILLRACE_URL,
  apiKey: process.env.MILLRACE_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
};
const millrace = createOpenAICompatible(settings);
const brief = { model: millrace("demo"), temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const get_weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string().max(40) }),
  strict: true,
  execute: async ({ city }) => ({ city, degrees: 21 }),
});
const ask = "What is a service tier?";
const askWeather = "What is the weather in Paris?";
const place = Output.object({ schema: z.object({ city: z.string().max(40) }) });

async function read(stream) {
  let text = "";
  for await (const part of stream) text += part;
  return text;
}

const whole = await generateText({ ...brief, prompt: ask });
assert.match(whole.text, /priority|tier/);
assert.equal(whole.finishReason, "length");
assert.ok(whole.usage.inputTokens > 0);
assert.equal(whole.response.modelId, "demo");

const streamed = streamText({ ...brief, prompt: ask });
assert.equal(await read(streamed.textStream), whole.text);
assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);
assert.equal(await streamed.finishReason, "length");

const tools = { ...brief, tools: { get_weather }, maxOutputTokens: 80 };
const messages = [{ role: "user", content: askWeather }];
const called = await generateText({ ...tools, messages, toolChoice: "required" });
assert.deepEqual(called.toolCalls[0].input, { city: "Paris" });
messages.push(...called.response.messages, { role: "user", content: "And now?" });
const next = streamText({ ...tools, messages, toolChoice: "none" });
assert.ok(await read(next.textStream));

const steps = streamText({ ...tools, prompt: askWeather, stopWhen: (isStepCount ?? stepCountIs)(3) });
assert.ok(await read(steps.textStream));
const [first] = await steps.steps;
assert.deepEqual(first.toolResults[0].output, { city: "Paris", degrees: 21 });

const object = await generateText({ ...brief, prompt: askWeather, output: place });
assert.deepEqual(object.output, { city: "Paris" });
const parts = streamText({ ...brief, prompt: askWeather, output: place });
assert.equal(JSON.parse(await read(parts.textStream)).city, "Paris");

const completion = { ...brief, model: millrace.completionModel("demo"), prompt: "A service tier is" };
const completed = await generateText(completion);
assert.ok(completed.text);
assert.equal(await read(streamText(completion).textStream), completed.text);

const wrong = createOpenAICompatible({ ...settings, apiKey: "mlr_live_wrong" });
const refusal = (error) =>
  APICallError.isInstance(error) && error.statusCode === 401 && /Incorrect API key/.test(error.message);
await assert.rejects(generateText({ ...brief, model: wrong("demo"), prompt: ask }), refusal);
